"""Benchmark files are found, loaded and written as promised; every shipped one says what it rests on."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.models.catalogue import build
from resnet_bench.models.of_recipe import check_benchmark
from resnet_bench.models.size import count_macs
from resnet_bench.recipe import files
from resnet_bench.recipe import toml_files as toml_files_module
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import merge, override_nested
from resnet_bench.recipe.files import (
    expand_suites,
    load_benchmark,
    load_benchmark_file,
    scan_benchmarks,
)
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import MultiStep, OneCycle, Phases
from resnet_bench.recipe.toml_files import search_folders, toml_files
from resnet_bench.recipe.writing import copy_benchmark, to_toml
from tests.strategies import benchmarks, words

MAIN = ("resnet9-onecycle-adam", "resnet34-sgd-224", "resnet18-step-decay", "cifar100-resnet")
SHIPPED = sorted(toml_files(search_folders("benchmarks", Path(__file__).parents[2] / "benchmarks")))

PARENT = """
[source]
title = "A source"
kind = "blog"
author = "A. Author"

[[claims]]
value = "87"

[recipe]
data = { dataset = "cifar10", mean = [0.5, 0.5, 0.5], std = [0.2, 0.2, 0.2], validation = { images = 100 } }
model = { name = "resnet9", options = { dropout = 0.1 } }
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }
schedule = { name = "phases", phases = [{ epochs = 6, factor = 1.0 }, { epochs = 4, factor = 0.1 }] }
training = { epochs = 10, batch_size = 128, clip_value = 0.5 }
evaluation = { batch_size = 128 }

[profiles.smoke]
data = { train_images = 500, test_images = 200 }
training = { epochs = 5 }

[tuned]
study = "s"
trials = 3
validation_source = 80.0
validation_tuned = 81.0

[[source.facts]]
fact = "Learning rate 0.1."
status = "stated"
keys = ["optimizer.lr"]

[[source.facts]]
fact = "The split is seeded."
status = "inferred"
keys = ["data.validation.images", "data.validation.seed"]

[[source.facts]]
fact = "It prints every 200 iterations."
status = "stated"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks of the user's own, which is not ./benchmarks."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    write(own, "parent", PARENT)
    return own


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_benchmark_file(path)
    return str(error.value)


# --- finding --------------------------------------------------------------------------------------


def test_the_named_folder_comes_before_the_shipped_one(folder: Path) -> None:
    searched = search_folders("benchmarks", folder)
    assert searched[0] == folder.resolve()
    assert len(searched) == 2
    assert (searched[1] / f"{MAIN[0]}.toml").is_file()


def test_a_folder_of_the_name_in_the_working_directory_is_used_unless_another_is_named(folder: Path) -> None:
    here = Path("benchmarks")
    here.mkdir()
    assert search_folders("benchmarks")[0] == here.resolve()
    assert here.resolve() not in search_folders("benchmarks", folder)


def test_a_checkout_has_the_shipped_folder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert search_folders("benchmarks") == [Path("benchmarks").resolve()]


def test_an_installed_package_brings_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "site" / "shipped" / "studies"
    shipped.mkdir(parents=True)
    monkeypatch.setattr(toml_files_module, "PACKAGE", tmp_path / "site")
    assert search_folders("studies") == [shipped.resolve()]


def test_search_rejects_a_path_that_is_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder; --benchmark-dir takes a folder"):
        search_folders("benchmarks", tmp_path / "nowhere")


def test_a_file_of_ones_own_replaces_the_shipped_one(folder: Path) -> None:
    write(folder, MAIN[0], PARENT)
    assert load_benchmark(MAIN[0], folder).source.title == "A source"
    assert scan_benchmarks(folder)[0][MAIN[0]].source.title == "A source"
    assert load_benchmark(MAIN[0]).source.title != "A source"


def test_an_unknown_name_gets_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^unknown benchmark 'resnet9-onecycle'; did you mean 'resnet9-onecycle-adam'"):
        load_benchmark("resnet9-onecycle", folder)
    with pytest.raises(UserError, match=r"did you mean 'parent'"):
        load_benchmark("parents", folder)


@pytest.mark.parametrize(
    "name", ["../secret", "own/../../secret", "/etc/passwd", "", ".", "a\0b", "A", "a_b", "x" * 300, "secret.txt"]
)
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    write(folder.parent, "secret", PARENT)
    with pytest.raises(UserError, match="unknown benchmark"):
        load_benchmark(name, folder)


def test_a_link_out_of_the_folder_is_not_followed(folder: Path) -> None:
    (folder / "linked.toml").symlink_to(write(folder.parent, "secret", PARENT))
    with pytest.raises(UserError, match="unknown benchmark 'linked'"):
        load_benchmark("linked", folder)
    assert "linked" not in scan_benchmarks(folder)[0]


def test_a_path_may_stand_for_a_name(folder: Path) -> None:
    assert load_benchmark("own/parent.toml").name == "parent"


def test_a_broken_file_is_told_and_disturbs_no_other(folder: Path) -> None:
    broken = write(folder, "broken", "[source")
    misnamed = write(folder, "Mis_named", PARENT)
    write(folder, ".hidden", "[source")
    (folder / "readme.md").write_text("no benchmark")
    assert load_benchmark("parent", folder).name == "parent"
    loaded, problems = scan_benchmarks(folder)
    assert {"parent", *MAIN} <= loaded.keys()
    assert problems.keys() == {"broken", "Mis_named"}
    assert problems["broken"].startswith(str(broken.resolve()))
    assert problems["Mis_named"].startswith(str(misnamed.resolve()))
    with pytest.raises(UserError, match=r"broken\.toml"):
        load_benchmark("broken", folder)


def test_scan_reads_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "child", 'extends = "parent"')
    write(folder, "grandchild", 'extends = "child"')
    read: list[str] = []
    original = files.read_toml
    monkeypatch.setattr(files, "read_toml", lambda path: read.append(path.name) or original(path))
    assert {"parent", "child", "grandchild"} <= scan_benchmarks(folder)[0].keys()
    assert sorted(read) == sorted(set(read))


def test_benchmarks_are_listed_by_family(folder: Path) -> None:
    write(folder, "variant-10", 'extends = "parent"')
    write(folder, "variant-9", 'extends = "parent"')
    write(folder, "zz", 'extends = "variant-10"')
    write(folder, "aa-paper", PARENT.replace('kind = "blog"', 'kind = "paper"'))
    own = [
        name for name in scan_benchmarks(folder)[0] if name in {"parent", "variant-9", "variant-10", "zz", "aa-paper"}
    ]
    assert own == ["parent", "variant-9", "variant-10", "zz", "aa-paper"]


def test_files_that_extend_one_another_by_way_of_a_replaced_one_are_listed(folder: Path) -> None:
    write(folder, "resnet9-onecycle-adam", 'extends = "resnet9-dropout"')
    assert {"resnet9-onecycle-adam", "resnet9-dropout"} <= scan_benchmarks(folder)[0].keys()


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[source\n", "is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 8)"),
        (b'a = "1"\nb = \n', "is not valid TOML: Invalid value (at line 2, column 5)"),
        (b"a = 1\na = 2\n", "is not valid TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b'title = "\xff"', "is not UTF-8 text (byte 9)"),
        (b"#" * 300_000, "is larger than 256 KiB"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "tables or lists are nested too deep"),
        (b"a" + b".a" * 100 + b" = 1", "tables or lists are nested more than 16 deep"),
        (b"a = 0x" + b"f" * 5000, "contains a whole number of more than 64 bits"),
        (b"a = [1, {b = 9223372036854775808}]", "contains a whole number of more than 64 bits"),
        (b"a = " + b"9" * 5000, "is not valid TOML: "),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: {sentence}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory" in refusal(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "folder.toml")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + PARENT.encode())
    assert load_benchmark_file(path).source.title == "A source"


@pytest.mark.parametrize("name", ["My-Net.toml", "my_net.toml", "my net.toml", "net.txt", "-.toml", "a\0.toml"])
def test_a_benchmark_is_named_after_its_file(tmp_path: Path, name: str) -> None:
    assert "a benchmark is named after its file" in refusal(tmp_path / name)


def test_a_file_does_not_set_its_name(tmp_path: Path) -> None:
    assert "unknown key 'name'" in refusal(write(tmp_path, "a", 'name = "b"\n' + PARENT))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "clip_value",
            "clip_valu",
            "unknown key 'recipe.training.clip_valu'; did you mean 'recipe.training.clip_value'",
        ),
        ("batch_size = 128, ", "", "recipe.training.batch_size is missing"),
        ("[profiles.smoke]", "[profiles.smok]", "unknown profile 'smok'; did you mean 'smoke'?"),
        ("test_images = 200", "test_image = 200", "profiles.smoke: unknown key 'data.test_image'; did you mean"),
        (
            "train_images = 500",
            "train_images = 200",
            "profiles.smoke: training.batch_size = 128 is larger than the 100",
        ),
        ('kind = "blog"', 'kind = "blog"\nextends = 3', "unknown key 'source.extends'; did you mean 'extends'?"),
        ("[[claims]]", "[claim]", "unknown key 'claim'; did you mean 'claims'?"),
        ("[[claims]]", "[claims]", "claims: must be a list, got {'value': '87'}"),
    ],
)
def test_a_mistake_is_told_with_file_key_and_reason(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in PARENT
    path = write(tmp_path, "a", PARENT.replace(old, new, 1))
    assert refusal(path).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("part", ["source", "recipe", "profiles", "profiles.smoke"])
def test_what_must_be_a_table_is_one(folder: Path, part: str) -> None:
    path = write(folder, "child", f'extends = "parent"\n{part} = 5')
    assert refusal(path).startswith(f"{path}: {part}: must be a table, got 5")


# --- extending ------------------------------------------------------------------------------------


def test_a_child_inherits_source_recipe_and_profiles_but_no_result(folder: Path) -> None:
    parent = load_benchmark("parent", folder)
    child = load_benchmark_file(write(folder, "child", 'extends = "parent"'))
    assert child.name == "child"
    assert child.extends == "parent"
    assert child.recipe == parent.recipe
    assert child.profiles == parent.profiles
    assert child.source.author == "A. Author"
    assert child.source.facts == parent.source.facts
    assert child.source.kind == "variant"
    assert child.claims == ()
    assert child.tuned is None
    assert parent.claims != ()
    assert parent.tuned is not None


def test_a_child_gives_what_differs(folder: Path) -> None:
    text = """
    extends = "parent"
    source = { title = "Mine", kind = "ours" }
    claims = [{ at_least = 50 }]
    recipe.optimizer = { name = "adam", lr = 0.001 }
    recipe.training.batch_size = 64
    recipe.data.validation = "none"
    recipe.model.options = { dropout = "none" }
    profiles.smoke.data.train_images = 300
    """
    child = load_benchmark_file(write(folder, "child", text))
    assert (child.source.title, child.source.kind, child.source.author) == ("Mine", "ours", "A. Author")
    assert [claim.text for claim in child.claims] == ["≥ 50%"]
    assert child.recipe.optimizer.name == "adam"
    assert not hasattr(child.recipe.optimizer, "momentum")
    assert child.recipe.training.batch_size == 64
    assert child.recipe.training.clip_value == 0.5
    assert child.recipe.data.validation is None
    assert child.recipe.model.options == {}
    smoke = child.recipe_for("smoke")
    assert (smoke.data.train_images, smoke.data.test_images, smoke.training.batch_size) == (300, 200, 64)
    assert smoke.data.validation is None


def test_the_profile_scales_the_schedule_with_its_epochs(folder: Path) -> None:
    smoke = load_benchmark("parent", folder).recipe_for("smoke")
    assert isinstance(smoke.schedule, Phases)
    assert [(phase.epochs, phase.factor) for phase in smoke.schedule.phases] == [(3, 1.0), (2, 0.1)]


def test_a_child_says_its_schedule_when_it_changes_the_epochs(folder: Path) -> None:
    path = write(folder, "child", 'extends = "parent"\nrecipe.training.epochs = 12')
    assert "recipe: schedule.phases add up to 10 epochs, shorter than the run, training.epochs = 12" in refusal(path)


def facts(benchmark: Benchmark) -> list[str]:
    return [fact.fact for fact in benchmark.source.facts]


def test_a_fact_of_the_child_overrides_that_of_the_parent(folder: Path) -> None:
    text = """
    extends = "parent"
    [[source.facts]]
    fact = "The split is by hand."
    status = "ambiguous"
    keys = ["data.validation"]
    """
    child = load_benchmark_file(write(folder, "child", text))
    assert facts(child) == ["Learning rate 0.1.", "It prints every 200 iterations.", "The split is by hand."]


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("optimizer.lr = 0.2", "Learning rate 0.1."),
        ("optimizer = { name = 'adam', lr = 0.01 }", "Learning rate 0.1."),
        ("data.validation.seed = 7", "The split is seeded."),
        ("data.validation = 'none'", "The split is seeded."),
        ("optimizer.lr = 1e-1", None),
        ("optimizer.weight_decay = 0.1", None),
    ],
)
def test_a_fact_goes_with_the_value_that_it_was_about(folder: Path, change: str, gone: str | None) -> None:
    child = load_benchmark_file(write(folder, "child", f'extends = "parent"\nrecipe.{change}'))
    assert [fact for fact in facts(load_benchmark("parent", folder)) if fact not in facts(child)] == (
        [gone] if gone else []
    )


def test_a_grandchild_inherits_through_the_child(folder: Path) -> None:
    write(folder, "child", 'extends = "parent"\nrecipe.optimizer.lr = 0.2\nprofiles.smoke.training.epochs = 4')
    grandchild = load_benchmark_file(write(folder, "grandchild", 'extends = "child"\nrecipe.optimizer.momentum = 0.5'))
    inherited = grandchild.recipe.flat()
    assert (inherited["optimizer.lr"], inherited["optimizer.momentum"]) == (0.2, 0.5)
    assert grandchild.recipe_for("smoke").training.epochs == 4
    assert grandchild.recipe_for("smoke").optimizer.lr == 0.2
    assert "Learning rate 0.1." not in facts(grandchild)


def test_a_parent_beside_the_file_comes_first(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, "parent", PARENT.replace("A source", "Beside it"))
    child = write(elsewhere, "child", 'extends = "parent"')
    assert load_benchmark_file(child, folder).source.title == "Beside it"


def test_a_shipped_benchmark_can_be_extended_from_anywhere(folder: Path) -> None:
    child = write(folder, "child", f'extends = "{MAIN[1]}"\nrecipe.training.epochs = 11')
    assert load_benchmark_file(child).recipe.training.epochs == 11


def test_a_missing_parent_gets_the_nearest(folder: Path) -> None:
    path = write(folder, "child", 'extends = "parrent"')
    assert refusal(path) == f"{path}: extends: unknown benchmark 'parrent'; did you mean 'parent'?"
    path = write(folder, "child", "extends = 3")
    assert refusal(path) == f'{path}: extends must be the name of a benchmark, in "quotes", got 3'


def test_a_parent_is_no_path(folder: Path) -> None:
    write(folder.parent, "secret", PARENT)
    assert "unknown benchmark '../secret'" in refusal(write(folder, "child", 'extends = "../secret"'))


@pytest.mark.parametrize(
    ("chain", "sentence"),
    [
        ({"a": "a"}, "a extends a, which has no end"),
        ({"a": "b", "b": "a"}, "a extends b extends a, which has no end"),
        ({"a": "b", "b": "c", "c": "b"}, "b extends c extends b, which has no end"),
    ],
)
def test_a_chain_without_an_end_is_refused(folder: Path, chain: dict[str, str], sentence: str) -> None:
    for name, parent in chain.items():
        write(folder, name, f'extends = "{parent}"')
    assert sentence in refusal(folder / "a.toml")


def test_a_mistake_of_the_parent_is_told_of_the_parent(folder: Path) -> None:
    write(folder, "broken", PARENT.replace("lr = 0.1", "lr = -1"))
    child = write(folder, "child", 'extends = "broken"\nrecipe.optimizer.lr = 1')
    assert refusal(child).startswith(f"{folder / 'broken.toml'}: recipe.optimizer.lr: should be greater than 0")


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "resnet9"', 'name = "resnet8"', "a: recipe.model: there is no model 'resnet8'; did you mean resnet"),
        ("dropout = 0.1", "droput = 0.1", "a: recipe.model: the model resnet9 has no option 'droput'"),
        ("dropout = 0.1", "dropout = 7", "a: recipe.model: the option dropout of the model resnet9 is"),
        (
            "[profiles.smoke]",
            '[profiles.smoke]\nmodel = { name = "resnet8" }',
            "a: profiles.smoke.model: there is no model 'resnet8'",
        ),
        (
            "[profiles.smoke]",
            "[profiles.smoke]\naugmentation = { resize = 16 }",
            "a: profiles.smoke.model: ",
        ),
    ],
)
def test_check_knows_the_networks(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    loaded = load_benchmark_file(write(tmp_path, "a", PARENT.replace(old, new, 1)))
    with pytest.raises(UserError) as error:
        check_benchmark(loaded)
    assert str(error.value).startswith(sentence)


# --- writing --------------------------------------------------------------------------------------


@given(benchmarks())
def test_what_is_written_loads_as_the_same(tmp_path_factory: pytest.TempPathFactory, benchmark: Benchmark) -> None:
    path = write(tmp_path_factory.mktemp("written"), benchmark.name, to_toml(benchmark))
    loaded = load_benchmark_file(path)
    assert loaded == benchmark
    assert loaded.recipe.fingerprint == benchmark.recipe.fingerprint


@pytest.mark.parametrize("milestones", [[5], [3]])
def test_a_schedule_that_did_not_follow_the_epochs_is_written_out(folder: Path, milestones: list[int]) -> None:
    schedule = {"name": "multi_step", "milestones": [5]}
    parent = load_benchmark("parent", folder)
    recipe = override_nested(parent.recipe, {"schedule": schedule}, where="test")
    longer = {"training": {"epochs": 20}, "schedule": {"milestones": milestones}}
    smoke = override_nested(recipe, longer, where="test")
    benchmark = parent.model_copy(update={"recipe": recipe, "profiles": {"smoke": smoke}})
    assert load_benchmark_file(write(folder, "parent", to_toml(benchmark))) == benchmark


def test_a_copy_trains_as_the_original_and_claims_nothing(folder: Path) -> None:
    path = folder / "new" / "my-net.toml"
    copy_benchmark("parent", path, folder)
    original, copied = load_benchmark("parent", folder), load_benchmark_file(path)
    assert copied.recipe == original.recipe
    assert copied.profiles == original.profiles
    assert (copied.name, copied.extends, copied.source.kind) == ("my-net", None, "ours")
    assert (copied.claims, copied.source.facts, copied.tuned) == ((), (), None)
    text = path.read_text()
    assert f"resnet-bench validate {path}" in text
    assert "mean = [0.5, 0.5, 0.5]" in text


def test_a_copy_overwrites_nothing(folder: Path) -> None:
    path = write(folder, "mine", "precious")
    with pytest.raises(UserError, match=r"mine\.toml exists; choose another name"):
        copy_benchmark("parent", path, folder)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["Mine.toml", "mine.txt", "mine", "my_net.toml"])
def test_a_copy_gets_a_name_that_can_be_loaded(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="name the file after the new benchmark"):
        copy_benchmark("parent", folder / name, folder)
    assert not (folder / name).exists()


def test_a_copy_that_cannot_be_written_says_so(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        copy_benchmark("parent", folder / "file" / "mine.toml", folder)


# --- the shipped benchmarks -----------------------------------------------------------------------


@pytest.fixture(params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> Benchmark:
    return load_benchmark(request.param)


def test_the_shipped_folder_holds_the_main_ones() -> None:
    assert set(MAIN) <= set(SHIPPED)


def test_a_shipped_benchmark_is_valid_and_round_trips(shipped: Benchmark, tmp_path: Path) -> None:
    check_benchmark(shipped)
    path = write(tmp_path, shipped.name, to_toml(shipped))
    assert load_benchmark_file(path) == shipped.model_copy(update={"extends": None})


def test_what_a_shipped_recipe_sets_is_backed_by_a_fact(shipped: Benchmark) -> None:
    if shipped.source.kind == "ours":
        pytest.skip("our own recipes have no source to be faithful to")
    chosen = flattened(shipped.recipe.model_dump(exclude_defaults=True, mode="json"))
    backed = [key for fact in shipped.source.facts for key in fact.keys]
    if shipped.source.kind == "tuned":
        # What was tuned rests on the study that the file names.
        assert shipped.tuned is not None
        assert shipped.extends is not None
        original = load_benchmark(shipped.extends).recipe.flat()
        backed += [key for key, value in shipped.recipe.flat().items() if original.get(key) != value]
    unbacked = [key for key in chosen if not any(key == other or key.startswith(f"{other}.") for other in backed)]
    assert unbacked == ["data.dataset"]


def flattened(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_the_facts_of_a_shipped_benchmark_are_about_its_own_recipe(shipped: Benchmark) -> None:
    """A fact about the betas of SGD would be valid by the schema, and wrong."""
    own = set(flattened(shipped.recipe.model_dump(mode="json"))) | {"data.validation", "model.options.dropout"}
    for fact in shipped.source.facts:
        assert set(fact.keys) <= own, fact
        assert fact.fact.strip() == fact.fact != ""
        assert (fact.status == "ambiguous") <= (fact.alternative is not None), fact


def test_an_alternative_that_is_named_exists(shipped: Benchmark) -> None:
    for fact in shipped.source.facts:
        named = re.findall(r": ([a-z0-9]+(?:-[a-z0-9]+)+)$", fact.alternative or "")
        assert set(named) <= set(SHIPPED), fact


def test_the_claims_of_a_shipped_benchmark_are_sane(shipped: Benchmark) -> None:
    for claim in shipped.claims:
        low, high = claim.interval
        assert 50 < low <= high
        assert high <= 100 or math.isinf(high)
        assert claim.quote
        curve = claim.curve
        if curve is not None and curve.note is None:
            last, best = curve.values[-1], max(curve.values)
            assert low - 1e-9 <= (best if claim.selection == "unknown" else last) <= high + 1e-9
            assert curve.epochs[-1] == shipped.recipe.training.epochs


def test_a_shipped_smoke_profile_is_small_and_of_the_same_kind(shipped: Benchmark) -> None:
    full, smoke = shipped.recipe, shipped.recipe_for("smoke")
    assert smoke.model == full.model
    assert smoke.data.dataset == full.data.dataset
    assert smoke.optimizer.name == full.optimizer.name
    assert smoke.evaluation.mode == full.evaluation.mode
    assert work(smoke) < 15e12
    assert smoke.steps_per_epoch * smoke.training.epochs >= 8


def test_the_main_smoke_profiles_take_minutes() -> None:
    """Two cores without bfloat16 do 75 to 150 · 10⁹ multiply-accumulates a second, slow and fast ones."""
    assert sum(work(load_benchmark(name).recipe_for("smoke")) for name in MAIN) / 150e9 < 240


def work(recipe: Recipe) -> int:
    """Multiply-accumulates of a run: a step costs three forward passes, an evaluation one or two."""
    with torch.device("meta"):
        network = build(recipe.model.name, num_classes=recipe.num_outputs, options=recipe.model.options)
    macs = count_macs(network, (3, recipe.image_size, recipe.image_size))
    evaluation = recipe.evaluation
    passes = 1 if evaluation.mode == "eval" else 2
    images = {
        "test": recipe.data.num_test,
        "validation": recipe.data.validation.images if recipe.data.validation else 0,
    }
    times = recipe.training.epochs // evaluation.every + evaluation.before_training
    evaluated = passes * (times * sum(images[split] for split in evaluation.splits) + images["test"])
    trained = recipe.training.epochs * recipe.data.num_train
    again = trained if recipe.training.train_accuracy == "separate_pass" else 0
    return macs * (3 * trained + again + evaluated)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("resnet9-onecycle-adam", "098d38f1a25d61b3"),
        ("resnet34-sgd-224", "7180d3a1ec8863fb"),
        ("resnet18-step-decay", "492f19d963b366c4"),
        ("cifar100-resnet", "d9caa40670996e42"),
    ],
)
def test_the_main_recipes_are_what_they_were(name: str, fingerprint: str) -> None:
    """Results are kept by fingerprint: one that changes by accident parts new runs from the old ones."""
    assert load_benchmark(name).recipe.fingerprint == fingerprint


# --- the main recipes against what their sources print --------------------------------------------


def one_cycle_rates(recipe: Recipe) -> list[float]:
    schedule = recipe.schedule
    assert isinstance(schedule, OneCycle)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.optimizer.lr,
        epochs=recipe.training.epochs,
        steps_per_epoch=recipe.steps_per_epoch,
        pct_start=schedule.rising_fraction,
        div_factor=schedule.initial_divisor,
        final_div_factor=schedule.final_divisor,
    )
    rates = []
    for _ in range(recipe.training.epochs * recipe.steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < recipe.training.epochs * recipe.steps_per_epoch:
            scheduler.step()
    return rates


def test_resnet9_has_the_learning_rates_of_the_public_log() -> None:
    recipe = load_benchmark("resnet9-onecycle-adam").recipe
    assert recipe.steps_per_epoch == 125
    rates = one_cycle_rates(recipe)
    printed = [0.00393, 0.00935, 0.00972, 0.00812, 0.00556, 0.00283, 0.00077, 0.0]
    assert rates[124::125] == pytest.approx(printed, abs=5e-6 + 1e-9)


def test_resnet9_weighs_a_last_batch_of_400_like_800() -> None:
    recipe = load_benchmark("resnet9-onecycle-adam").recipe
    assert recipe.data.num_test % recipe.evaluation.batch_size == 400
    assert recipe.evaluation.averaging == "batches"
    assert recipe.evaluation.before_training
    assert recipe.evaluation.splits == ("test",)


def test_resnet34_keeps_its_test_set_for_the_end() -> None:
    benchmark = load_benchmark("resnet34-sgd-224")
    recipe = benchmark.recipe
    assert recipe.data.validation is not None
    assert (recipe.data.num_train, recipe.data.validation.images, recipe.data.validation.seed) == (45_000, 5000, 42)
    assert recipe.evaluation.splits == ("validation",)
    assert recipe.evaluation.test_at_end
    assert recipe.evaluation.mode == "batch_statistics"
    assert recipe.data.num_test % recipe.evaluation.batch_size == 16
    assert recipe.image_size == 224
    curve = benchmark.claims[1].curve
    assert curve is not None
    assert curve.values == (54.76, 70.02, 75.28, 79.62, 80.46, 79.66, 82.86, 82.64, 83.92, 83.48)


def test_resnet18_steps_down_by_hand() -> None:
    recipe = load_benchmark("resnet18-step-decay").recipe
    assert isinstance(recipe.schedule, Phases)
    phases = [(phase.epochs, phase.factor * recipe.optimizer.lr) for phase in recipe.schedule.phases]
    assert phases == [(150, 0.1), (60, pytest.approx(0.01)), (60, pytest.approx(0.001))]
    assert recipe.schedule.restart_momentum
    assert recipe.steps_per_epoch == 391


def test_the_whole_published_log_of_cifar100_is_there() -> None:
    benchmark = load_benchmark("cifar100-resnet")
    test, train = (claim.curve for claim in benchmark.claims)
    assert test is not None
    assert train is not None
    assert test.epochs == train.epochs == tuple(range(1, 71))
    printed = {
        1: 14.85,
        10: 45.35,
        20: 55.15,
        30: 59.18,
        40: 59.33,
        50: 61.49,
        60: 60.91,
        68: 62.69,
        69: 62.70,
        70: 61.97,
    }
    assert {epoch: test.values[epoch - 1] for epoch in printed} == printed
    assert max(test.values) == 62.70
    assert (train.values[0], train.values[-1]) == (14.472, 95.162)
    assert benchmark.recipe.data.num_test % benchmark.recipe.evaluation.batch_size == 16


def test_the_paper_counts_iterations() -> None:
    for name in ("he-resnet20", "he-resnet56"):
        recipe = load_benchmark(name).recipe
        assert isinstance(recipe.schedule, MultiStep)
        iterations = [recipe.steps_per_epoch * epoch for epoch in (*recipe.schedule.milestones, recipe.training.epochs)]
        assert iterations == pytest.approx([32_000, 48_000, 64_000], abs=recipe.steps_per_epoch / 2)


# --- whatever a file holds ------------------------------------------------------------------------


@given(text=st.text(max_size=300))
def test_any_text_is_loaded_or_refused_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    says_why(write(tmp_path_factory.mktemp("fuzzed"), "a", text))


@given(data=st.data(), name=st.sampled_from([*MAIN, "resnet9-dropout", "resnet50-step-decay-1000-way"]))
@settings(max_examples=150)
def test_a_damaged_file_is_loaded_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    folder = search_folders("benchmarks")[-1]
    lines = (folder / f"{name}.toml").read_text().splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        damage = data.draw(st.sampled_from(["drop", "repeat", "swap", "value", "key"]))
        if damage == "drop":
            lines[at] = ""
        elif damage == "repeat":
            lines[at] *= 2
        elif damage == "swap":
            lines[at], lines[0] = lines[0], lines[at]
        elif damage == "value":
            values = ["-1", "1e400", "nan", "true", '""', '"none"', "[]", "{}", "1979-05-27", "[[1]]", "0xffffffffff"]
            lines[at] = re.sub(r"= .*", f"= {data.draw(st.sampled_from(values))}", lines[at])
        else:
            key, equals, value = lines[at].partition(" =")
            lines[at] = data.draw(words | st.just(f"{key}s")) + equals + value
    says_why(write(tmp_path_factory.mktemp("damaged"), "a", "".join(lines)))


def says_why(path: Path) -> None:
    sentence = None
    try:
        load_benchmark_file(path)
    except UserError as error:
        sentence = str(error)
    # A parent's file may be the one that is named.
    assert sentence is None or re.match(r"/.+\.toml: .{8,}", sentence, re.DOTALL)


@given(st.recursive(st.integers(), lambda below: st.dictionaries(st.sampled_from(["name", "a", "b"]), below)))
def test_merging_nothing_changes_nothing(value: Any) -> None:
    table = {"top": value}
    assert merge(table, {}) == merge({}, table) == merge(table, table) == table


def test_a_suite_stands_for_its_benchmarks_and_is_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "child.toml").write_text('extends = "plain-20"\n\n[recipe.training]\nbatch_size = 64\n')
    (tmp_path / "mine.toml").write_text('extends = "plain-20"\nsuites = ["mine", "depth"]\n')
    found = expand_suites(["plain-20", "@depth", "resnet9-dropout", "@mine"], tmp_path)
    assert found[0] == "plain-20"
    assert {"he-resnet110", "vgg16-cifar", "mine"} <= set(found)
    assert len(found) == len(set(found))
    assert "child" not in found
    with pytest.raises(UserError, match="did you mean 'depth'"):
        expand_suites(["@dept"], tmp_path)
