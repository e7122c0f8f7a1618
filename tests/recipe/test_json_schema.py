"""The schemas that editors check benchmark and study files with."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.recipe.json_schema import benchmark_schema, dataset_schema, limits_schema
from resnet_bench.running.launchers.json_schema import launcher_schema
from resnet_bench.tuning.json_schema import study_schema
from tests.golden import typed
from tests.recipe.json_schema_check import violations

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    "benchmark": benchmark_schema,
    "study": study_schema,
    "dataset": dataset_schema,
    "launcher": launcher_schema,
    "limits": limits_schema,
}
FILES = [
    *((path, "benchmark") for path in sorted((ROOT / "benchmarks").glob("*.toml"))),
    *((path, "study") for path in sorted((ROOT / "studies").glob("*.toml"))),
    *((path, "dataset") for path in sorted((ROOT / "datasets").glob("*.toml"))),
    (ROOT / "docs" / "examples" / "limits.toml", "limits"),
    (ROOT / "docs" / "examples" / "launchers" / "h200.toml", "launcher"),
]


def problems(table: dict[str, Any], kind: str) -> list[str]:
    schema = SCHEMAS[kind]()
    return list(violations(table, schema, schema))


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_schema_that_editors_read_is_the_one_that_is_printed(kind: str) -> None:
    printed = typed(f"schema {kind}")
    assert (printed.code, printed.err) == (0, "")
    assert (ROOT / "schemas" / f"{kind}.json").read_text() == printed.out, (
        f"resnet-bench schema {kind} --output schemas/{kind}.json"
    )


@pytest.mark.parametrize(("path", "kind"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_every_shipped_file_fits_and_names_its_schema(path: Path, kind: str) -> None:
    text = path.read_text()
    assert problems(tomllib.loads(text), kind) == []
    first = text.splitlines()[0]
    assert first.startswith("#:schema ")
    assert (path.parent / first.removeprefix("#:schema ")).resolve() == ROOT / "schemas" / f"{kind}.json"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("[recipe.optimizer]\nname = 'adam'\nlearning_rate = 0.1", "recipe.optimizer"),
        ("[recipe.training]\nepochs = 'many'", "recipe.training.epochs"),
        ("[recipe.training]\nepochs = 0", "recipe.training.epochs"),
        ("[recipe.augmentation]\nflip = 1", "recipe.augmentation.flip"),
        ("[recipe.augmentation]\npadding_mode = 'mirror'", "padding_mode"),
        ("[profiles.quick]\n", "profiles: quick"),
        ("[[claims]]\nat_least = 190", "claims[0].at_least"),
        ("surce = 1", "surce"),
    ],
)
def test_what_a_benchmark_does_not_know_is_marked(changed: str, says: str) -> None:
    found = problems(tomllib.loads(f'extends = "resnet9-onecycle-adam"\n{changed}'), "benchmark")
    assert any(says in problem for problem in found), found


@pytest.mark.parametrize(
    ("table", "fits"),
    [
        ({"launcher": "slurm", "partition": "gpu", "time": "1d 12h", "setup": ["module load cuda"]}, True),
        ({"time": 90, "gpus_per_node": 0}, True),
        ({"time": "2 hours"}, False),
        ({"time": 1}, False),
        ({"partiton": "gpu"}, False),
        ({"launcher": "slrm"}, False),
        ({"launcher": "ray", "address": "10.0.0.1:6379", "resources": {"H200": 1}, "shared": True}, True),
        ({"launcher": "ray", "partition": "gpu"}, False),
        ({"gpus": 2}, False),
    ],
)
def test_the_schema_of_a_launcher_marks_what_the_command_refuses(table: dict[str, Any], fits: bool) -> None:
    assert (problems(table, "launcher") == []) is fits


def test_what_is_missing_is_marked_unless_the_file_extends_another() -> None:
    assert problems({"source": {"title": "Mine", "kind": "ours"}}, "benchmark")
    assert problems({"extends": "a", "recipe": {"data": {"train_images": "none"}}}, "benchmark") == []
    assert problems({"extends": "a", "recipe": {"data": {"dataset": "none", "train_images": "some"}}}, "benchmark")


@pytest.mark.parametrize(
    "table",
    [
        {"space": {"optimizer": {"lr": {"type": "float", "lo": 1}}}},
        {"space": {}},
        {"sampler": {"name": "tpee"}},
        {"recipe": {"training": {"epochs": -1}}},
        {"profiles": {"smoke": {"budget": {"trials": 0}}}},
        {"budget": {}},
    ],
)
def test_what_a_study_does_not_know_is_marked(table: dict[str, Any]) -> None:
    rate = {"type": "float", "low": 1, "high": 2}
    good = {"benchmark": "a", "budget": {"trials": 3}, "space": {"optimizer": {"lr": rate}}}
    assert problems(good, "study") == []
    assert problems({**good, **table}, "study")


@pytest.mark.parametrize(
    "limit",
    [{}, {"benchmark": "A"}, {"benchmark": "a", "drop": -1}, {"benchmark": "a", "time_factor": 1.01}, {"name": "a"}],
)
def test_what_limits_do_not_know_is_marked(limit: dict[str, Any]) -> None:
    assert problems({"limits": [{"benchmark": "a", "drop": 1, "time_factor": 1.2}]}, "limits") == []
    assert problems({"limits": [limit]}, "limits")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("fit = 'squeeze'", "fit"),
        ("image_size = 4", "image_size"),
        ("mean = [0.5]", "mean"),
        ("classes = ['a']", "classes"),
        ("tran = 'photos/train'", "tran"),
    ],
)
def test_what_a_dataset_does_not_know_is_marked(changed: str, says: str) -> None:
    good = "test = 'photos/test'\ntest_images = 10\nclasses = ['a', 'b']\n"
    assert problems(tomllib.loads(good), "dataset") == []
    table = {**tomllib.loads(good), **tomllib.loads(changed)}
    assert any(says in problem for problem in problems(table, "dataset")), problems(table, "dataset")
    assert problems({"test": "a", "classes": ["a", "b"]}, "dataset")


def test_editors_find_the_schema_of_every_kind_of_file() -> None:
    rules = tomllib.loads((ROOT / ".taplo.toml").read_text())["rule"]
    assert {rule["schema"]["path"] for rule in rules} == {f"schemas/{kind}.json" for kind in SCHEMAS}
    for path, kind in FILES:
        name = path.relative_to(ROOT).as_posix()
        found = [rule["schema"]["path"] for rule in rules if any(map(Path(name).match, rule["include"]))]
        assert found == [f"schemas/{kind}.json"], name


def test_every_key_says_what_it_is_for() -> None:
    """As far as the models do: what hovers over a key in an editor."""
    schema = benchmark_schema()
    assert "downsampled" in schema["$defs"]["ResizeStage"]["properties"]["pixels"]["description"]
    assert json.dumps(schema).count('"description"') > 100


def test_a_schema_is_written_to_a_file_that_can_be_written(tmp_path: Path) -> None:
    assert typed(f"schema study --output {tmp_path / 'study.json'}").code == 0
    assert json.loads((tmp_path / "study.json").read_text()) == study_schema()
    refused = typed(f"schema study --output {tmp_path / 'nowhere' / 'study.json'}")
    assert refused.code == 2
    assert "cannot be written" in refused.err
