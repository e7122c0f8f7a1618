"""Trained networks as MLflow models."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_bench.tracking import mlflow_client

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn


def save_model(
    network: "nn.Module", example: "npt.NDArray[np.float32]", folder: Path, *, requirements: Sequence[str] | None = None
) -> None:
    """Save a network as an MLflow model with a signature, in a format that holds none of our code.

    ``mlflow.pytorch.load_model`` gives it back, without this package and for batches of any size.

    Args:
        network: The trained network, not compiled; it stays where and as it is.
        example: Normalized images, shape [2, 3, height, width]. From a batch of one the export would learn
            that batches are of one.
        folder: Where to; a model that is there already is replaced.
        requirements: Packages that the model needs; by default torch and numpy at their versions here.
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
    with mlflow_client.quiet():
        mlflow.pytorch.save_model(
            exported,
            str(folder),
            signature=infer_signature(example, output),
            input_example=example,
            # Without a list MLflow runs the model in another process to find out, which takes 15 s.
            pip_requirements=list(
                requirements or (f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={numpy.__version__}")
            ),
        )
