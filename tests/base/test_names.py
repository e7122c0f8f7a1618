import pytest

from resnet_bench.base.names import is_file_name, nearest, unknown_name
from resnet_bench.recipe.files import scan_benchmarks
from resnet_bench.recipe.recipe import recipe_keys


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer.learning_rate", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("training.lr", "optimizer.lr"),
        ("batchsize", "training.batch_size"),
        ("dataset", "data.dataset"),
        ("Training.Epochs", "training.epochs"),
        ("xyzzy", None),
        ("", None),
    ],
)
def test_nearest_knows_recipe_keys_by_the_names_of_other_tools(typed: str, meant: str | None) -> None:
    assert nearest(typed, recipe_keys()) == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resnet9", "resnet9-onecycle-adam"),
        ("resnet9-onecycle-adm", "resnet9-onecycle-adam"),
        ("RESNET9-DROPOUT", "resnet9-dropout"),
        ("speedrun", "speedrun-90"),
    ],
)
def test_unknown_name_suggests_the_benchmark_that_begins_with_it(typed: str, meant: str) -> None:
    assert unknown_name("benchmark", typed, scan_benchmarks()[0]).endswith(f"; did you mean {meant!r}?")


def test_unknown_name_lists_what_there_is_where_nothing_is_near() -> None:
    assert unknown_name("study", "xyz", ["b", "a"]) == "unknown study 'xyz'; there are: a, b"
    assert unknown_name("study", "xyz", []) == "unknown study 'xyz'"


def test_file_names_are_short_and_plain() -> None:
    assert is_file_name("resnet9-dropout")
    assert not any(is_file_name(name) for name in ("", "A", "a--b", "a_b", "../a", "a" * 81))
