"""Write benchmarks as TOML files."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_new
from resnet_bench.base.names import is_file_name
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import is_renamed, on_dataset, override_nested
from resnet_bench.recipe.dataset_files import FOLDER, DatasetFile, own_dataset
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import NOT_GIVEN, Schema, parse
from resnet_bench.recipe.toml_files import Table

_SHORT_LIST = re.compile(r"^(?P<key>\S+) = \[\n(?P<values>(?:    [^\s{\[].*,\n)+)\]$", re.MULTILINE)


def to_toml(benchmark: Benchmark, *, describes_dataset: bool = True) -> str:
    """Write a whole benchmark as TOML, without a parent.

    Loading it under the same file name gives an equal benchmark, except that ``extends`` is None.

    Args:
        benchmark: What is written.
        describes_dataset: Whether the description of a user's dataset is written, too. Without it, the file
            follows ``datasets/NAME.toml``.
    """
    table: Table = {"suites": list(benchmark.suites)} if benchmark.suites else {}
    table["source"] = _written(benchmark.source)
    if benchmark.claims:
        table["claims"] = [_written(claim) for claim in benchmark.claims]
    table["recipe"] = benchmark.recipe.model_dump(exclude_none=True, mode="json")
    if not benchmark.recipe.model.options:
        del table["recipe"]["model"]["options"]
    if not describes_dataset and benchmark.recipe.data.description is not None:
        del table["recipe"]["data"]["description"]
        if said := _own_description(benchmark.recipe):
            table["recipe"]["data"]["description"] = said
    if benchmark.profiles:
        table["profiles"] = {
            name: _differences(benchmark.recipe, profile) for name, profile in benchmark.profiles.items()
        }
    if benchmark.tuned is not None:
        table["tuned"] = _written(benchmark.tuned)
    return _SHORT_LIST.sub(_on_one_line, tomli_w.dumps(table))


def _on_one_line(found: re.Match[str]) -> str:
    values = [line.removeprefix("    ").removesuffix(",") for line in found["values"].rstrip("\n").split("\n")]
    line = f"{found['key']} = [{', '.join(values)}]"
    return line if len(line) <= 110 else found[0]


def dataset_to_toml(file: DatasetFile) -> str:
    """Write a file of ``datasets/``: where the images are comes first."""
    table = file.model_dump(exclude_none=True, mode="json")
    ordered = {key: table[key] for key in ("train", "test") if key in table} | table
    return _SHORT_LIST.sub(_on_one_line, tomli_w.dumps(ordered))


def copy_benchmark(name: str, path: Path, folder: Path | None = None, dataset: str | None = None) -> list[str]:
    """Copy a benchmark's recipe and profiles to a file, as the start of a new benchmark.

    The source's claims and facts are left out: they do not hold for a changed recipe.

    Args:
        name: The benchmark to start from.
        path: File to write; its folder is created if it is missing.
        folder: Folder of benchmarks to search first.
        dataset: Train on this dataset instead; see :func:`resnet_bench.recipe.changes.on_dataset`.

    Returns:
        The recipe keys that the dataset changed, such as ``training.batch_size = 11``.

    Raises:
        UserError: There is no such benchmark or dataset, the file exists, or its name is not valid for a benchmark.
    """
    original = load_benchmark(name, folder)
    before = original.recipe.flat()
    if dataset is not None:
        profiles = {profile: on_dataset(recipe, dataset) for profile, recipe in original.profiles.items()}
        recipe = on_dataset(original.recipe, dataset)
        original = original.model_copy(update={"recipe": recipe, "profiles": profiles})
    if path.suffix != ".toml" or not is_file_name(path.stem):
        raise UserError(
            f"{path}: name the file after the new benchmark, in lower-case letters, digits and hyphens, "
            f"such as {path.parent / 'my-resnet.toml'}"
        )
    own = original.model_copy(
        update={
            "source": parse(
                type(original.source),
                {"title": f"My variant of {original.name}", "kind": "ours", "notes": f"Started from {original.name}."},
                where=str(path),
            ),
            "claims": (),
            "tuned": None,
        }
    )
    text = f"""\
# Your own benchmark, copied from {original.name}. Edit it, then:
#   resnet-bench validate {shlex.quote(str(path))}
#   resnet-bench run {shlex.quote(str(path))} --profile smoke
# [profiles.smoke] has the differences for a run of a few minutes. "{NOT_GIVEN}" removes an optional key.

{to_toml(own, describes_dataset=False)}"""
    try:
        write_new(path, text.encode())
    except OSError as error:
        if path.exists():
            raise UserError(f"{path} exists; choose another name or remove it") from None
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    after = {key: value for key, value in own.recipe.flat().items() if not key.startswith("data.description.")}
    return [f"{key} = {after.get(key, NOT_GIVEN)}" for key in {**before, **after} if after.get(key) != before.get(key)]


def _own_description(recipe: Recipe) -> Table:
    """Return what a recipe says of its dataset beyond the dataset's file."""
    data = recipe.data
    if data.description is None:
        return {}
    said: Table = {key: getattr(data.description, key) for key in ("image_size", "fit")}
    if data.dataset == FOLDER:
        return said
    known = own_dataset(data.dataset)
    return {key: value for key, value in said.items() if value != getattr(known, key)}


def _written(part: Schema) -> Table:
    return part.model_dump(exclude_none=True, exclude_defaults=True, mode="json")


def _differences(recipe: Recipe, profile: Recipe) -> Table:
    """Compute the changes with which :func:`override_nested` turns the recipe into the profile."""
    full, wanted = (part.model_dump(exclude_none=True, mode="json") for part in (recipe, profile))
    differences = _difference(full, wanted)
    scaled = {key: value for key, value in differences.items() if key != "schedule"}
    if _gives(recipe, scaled, profile):
        return scaled
    # With another number of epochs, an omitted schedule would be scaled.
    return {**differences, "schedule": wanted["schedule"]}


def _gives(recipe: Recipe, changes: Table, profile: Recipe) -> bool:
    try:
        return override_nested(recipe, changes, where="profile") == profile
    except UserError:
        return False


def _difference(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> Table:
    differences: Table = {key: NOT_GIVEN for key in base if key not in wanted}
    for key, value in wanted.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and not is_renamed(below, value):
            if inner := _difference(below, value):
                differences[key] = inner
        elif key not in base or value != below:
            differences[key] = value
    return differences
