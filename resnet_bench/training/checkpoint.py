"""Checkpoints: written whole or not at all, read back without running anything they contain."""

import os
import pickle
from pathlib import Path

import torch

from resnet_bench.errors import UserError
from resnet_bench.training.events import State

FORMAT = 1


def save(state: State, path: Path) -> None:
    """Write a snapshot so that, whatever happens, either the old file or the new one is there.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old checkpoint is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load(path: Path) -> State:
    """Read a checkpoint; tensors come back on the CPU.

    Raises:
        UserError: There is none, or it is damaged, or another version of resnet-bench wrote it.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no checkpoint here to go on from; start the run without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: the checkpoint cannot be read ({reason}); start the run anew") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise UserError(
            f"{path}: this is a checkpoint of format {found}, this version reads format {FORMAT}; "
            "go on with the version that wrote it, or start the run anew"
        )
    return state


def _sync_folder(folder: Path) -> None:
    # A rename is only on the disk once its folder is; Windows has no such call.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
