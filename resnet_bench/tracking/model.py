"""Trained networks as MLflow models."""

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.tracking import mlflow_client

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from resnet_bench.training.events import State

PREFIX = "network."
"""How the names of all weights begin in a model that has its preprocessing; models of 0.1.0 are the network alone."""

PROGRAM = "data/model.pt2"
"""The file of an MLflow model that torch reads without MLflow."""


def save_model(network: "nn.Module", example: "npt.NDArray[np.uint8]", folder: Path) -> None:
    """Save a network as an MLflow model with a signature, in a format that holds none of our code.

    ``mlflow.pytorch.load_model`` gives it back, without this package and for batches of any size.

    Args:
        network: The trained network with its preprocessing, not compiled; it stays where and as it is.
        example: Images as they are stored, uint8 [2, 3, height, width]; the signature says what they are. From a
            batch of one the export would learn that batches are of one.
        folder: Where to; a model that is there already is replaced.
    """
    mlflow_client.load()
    import mlflow.pytorch
    import numpy
    import torch
    from mlflow.models import infer_signature

    exported = copy.deepcopy(network).to("cpu").to(memory_format=torch.contiguous_format).eval()
    with torch.inference_mode():
        output = exported(torch.from_numpy(example)).numpy()
    if folder.exists():
        shutil.rmtree(folder)
    # What libraries warn about must not end a run that was trained, whatever warnings the user made errors.
    with mlflow_client.quiet(), _packages_unchecked():
        mlflow.pytorch.save_model(
            exported,
            str(folder),
            signature=infer_signature(example, output),
            input_example=example,
            # Without a list MLflow runs the model in another process to find out, which takes 15 s.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={numpy.__version__}"],
        )


@contextlib.contextmanager
def _packages_unchecked() -> Iterator[None]:
    """Spare MLflow's look at whether the listed packages are installed, which were just asked for their versions.

    It would read the lists of files of all packages, which is a seventh of a short run's processor time.
    """
    from mlflow.utils import environment

    name = "warn_dependency_requirement_mismatches"
    check = getattr(environment, name, None)
    if check is None:
        yield
        return
    setattr(environment, name, lambda _: None)
    try:
        yield
    finally:
        setattr(environment, name, check)


def load_weights(model: Path) -> "State":
    """Read the weights of a saved model, under the names that the network alone gives them.

    Args:
        model: The folder of an MLflow model, or its file :data:`PROGRAM` alone.

    Raises:
        UserError: It cannot be read.
    """
    import torch

    file = model / PROGRAM if model.is_dir() else model
    try:
        weights = torch.export.load(file).state_dict
    # What is not there, is damaged, or is of another version of torch may raise anything.
    except Exception as error:
        raise UserError(f"{file}: the weights cannot be read: {describe_error(error, limit=160)}") from None
    if all(name.startswith(PREFIX) for name in weights):
        return {name.removeprefix(PREFIX): value for name, value in weights.items()}
    return dict(weights)
