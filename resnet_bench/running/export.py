"""Export a trained network to a folder as the Hugging Face Hub has it: weights, config.json, model card, results."""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.writing import to_toml
from resnet_bench.running.classifier import Classifier
from resnet_bench.running.model_card import eval_results, model_card
from resnet_bench.running.pictures import OTHER
from resnet_bench.running.safetensors import write_safetensors
from resnet_bench.running.trained import RECIPE_FILE, SAFETENSORS_FILE, TORCH_FILE, TrainedRun
from resnet_bench.tracking.model import PROGRAM, save_model

Format = Literal["safetensors", "torch", "onnx"]

ONNX_FILE = "model.onnx"
FILES: dict[Format, str] = {"safetensors": SAFETENSORS_FILE, "torch": TORCH_FILE, "onnx": ONNX_FILE}
ONNX_PACKAGES = ("onnx", "onnxscript")
CONFIG_FILE = "config.json"
RESULTS_FOLDER = ".eval_results"

_IDENTITY = ("run_id", "benchmark", "profile", "seed", "recipe", "accuracy")
"""Keys of a configuration that tell runs apart, also those that never reached a store and have no id."""


def check_format(format: Format) -> None:  # noqa: A002 - as the option is called
    """Make sure that a format can be written here.

    Raises:
        UserError: A package is missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}; type: pip install 'resnet-bench[export]', "
            "or take --format torch"
        )


def export_run(trained: TrainedRun, format: Format, folder: Path) -> list[Path]:  # noqa: A002
    """Write a trained network, and what explains it, to a folder.

    Files of the same names are replaced. Where another run was exported to the folder, its other weights and its
    results are removed: they would be taken for those of this one.

    Args:
        trained: The run.
        format: ``safetensors`` writes the weights alone; ``torch`` (a program of ``torch.export``) and ``onnx`` write
            the network with its preprocessing.
        folder: Where to; it is made where it is missing.

    Returns:
        The files. ``.eval_results/`` is only written for results on a whole published test set.

    Raises:
        UserError: A package is missing, or the folder cannot be written.
    """
    check_format(format)
    config = _config(trained)
    files = {"README.md": model_card(trained, format)}
    if (results := eval_results(trained)) is not None:
        files[f"{RESULTS_FOLDER}/{trained.benchmark.recipe.data.dataset}.yaml"] = results
    # The recipe is removed first and written last: a folder without one is not whole, and nobody loads it.
    files[RECIPE_FILE] = to_toml(trained.benchmark)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_other_run(folder, config)
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / CONFIG_FILE, text.encode())
        _write_weights(trained, format, folder / FILES[format])
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_atomically(folder / name, text.encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); name another --output") from None
    return [folder / name for name in (FILES[format], CONFIG_FILE, *files)]


def _remove_other_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Remove weights and results of another run, or of an export that was killed. A folder of others stays."""
    try:
        before = json.loads((folder / CONFIG_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return
    if not isinstance(before, dict) or "resnet_bench" not in before:
        return
    if (folder / RECIPE_FILE).is_file() and all(before.get(key) == config[key] for key in _IDENTITY):
        return
    for name in (RECIPE_FILE, *FILES.values()):
        (folder / name).unlink(missing_ok=True)
    if (folder / RESULTS_FOLDER).is_dir():
        shutil.rmtree(folder / RESULTS_FOLDER)


def _config(trained: TrainedRun) -> dict[str, Any]:
    recipe = trained.benchmark.recipe
    names = recipe.data.facts.class_names
    return {
        "architecture": recipe.model.name,
        "network": recipe.model.model_dump(mode="json", exclude_none=True),
        "classes": [*names, *[OTHER] * (recipe.num_outputs - len(names))],
        "preprocessing": {
            "images": "RGB, [N, 3, height, width], uint8",
            "size": recipe.data.facts.image_size,
            "resize": recipe.augmentation.resize,
            "scale": "1/255",
            "mean": list(recipe.data.mean),
            "std": list(recipe.data.std),
        },
        "benchmark": trained.benchmark.name,
        "profile": trained.tag("profile"),
        "seed": int(trained.tag("seed")),
        "recipe": recipe.fingerprint,
        "accuracy": dict(trained.accuracies),
        "run_id": trained.run_id,
        "resnet_bench": trained.tag("version"),
    }


def _write_weights(trained: TrainedRun, format: Format, path: Path) -> None:  # noqa: A002
    if format == "safetensors":
        metadata = {"format": "pt", "benchmark": trained.benchmark.name, "recipe": trained.benchmark.recipe.fingerprint}
        write_safetensors(path, trained.weights, metadata)
    elif format == "torch":
        with TemporaryDirectory(prefix="resnet-bench-export-") as scratch:
            save_model(trained.classifier, _example(trained.benchmark.recipe), Path(scratch) / "model")
            shutil.copyfile(Path(scratch) / "model" / PROGRAM, path)
    else:
        _write_onnx(trained.classifier, trained.benchmark.recipe, path)


def _write_onnx(classifier: Classifier, recipe: Recipe, path: Path) -> None:
    torch.onnx.export(
        classifier,
        (torch.from_numpy(_example(recipe)),),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _example(recipe: Recipe) -> np.ndarray[Any, np.dtype[np.uint8]]:
    side = recipe.data.facts.image_size
    # Two images, because from one the export would learn that batches are of one.
    return np.zeros((2, 3, side, side), dtype=np.uint8)
