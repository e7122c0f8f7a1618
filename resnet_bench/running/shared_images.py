"""Datasets that several processes hold one copy of."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.dataset import Dataset, Split


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class SharedImages:
    """Datasets in a file without a name, which each process maps into its memory.

    It can be sent to a child process as one of its arguments. The file is gone with the last process that has it.
    """

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        """Write the datasets down, once for all processes.

        Raises:
            UserError: There is no room for them.
        """
        self._layout: dict[str, tuple[dict[str, Any], dict[str, _Place]]] = {}
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the descriptor below
            for name, dataset in datasets.items():
                facts = {**vars(dataset), "train": None, "test": None}
                self._layout[name] = (facts, {part: _write(file, array) for part, array in _arrays(dataset)})
            file.flush()
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: the images that the processes share could not be written here "
                f"({error.strerror}); set TMPDIR to a folder with room for them"
            ) from None
        self._descriptor = os.dup(file.fileno())
        file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self._layout, "descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._layout, self._descriptor = state["layout"], state["descriptor"].detach()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def datasets(self) -> dict[str, Dataset]:
        """The datasets by name. Writing into one changes this process's copy alone."""
        return {name: self._open(*parts) for name, parts in self._layout.items()}

    def _open(self, facts: Mapping[str, Any], places: Mapping[str, _Place]) -> Dataset:
        tensors = {part: torch.from_numpy(self._map(place)) for part, place in places.items()}
        splits = {split: Split(tensors[f"{split}/images"], tensors[f"{split}/labels"]) for split in ("train", "test")}
        return Dataset(**{**facts, **splits})

    def _map(self, place: _Place) -> npt.NDArray[Any]:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            return np.memmap(file, place.dtype, mode="c", offset=place.offset, shape=place.shape)


def _arrays(dataset: Dataset) -> list[tuple[str, npt.NDArray[Any]]]:
    return [
        (f"{name}/{part}", getattr(split, part).numpy())
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for part in ("images", "labels")
    ]


def _write(file: Any, array: npt.NDArray[Any]) -> _Place:
    place = _Place(file.tell(), array.shape, array.dtype.str)
    file.write(np.ascontiguousarray(array).data)
    return place
