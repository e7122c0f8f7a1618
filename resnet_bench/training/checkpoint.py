"""Checkpoints: written whole or not at all, read back without running anything they contain.

A checkpoint is what ``torch.save`` writes, a zip archive, whose comment seals it: the format, the torch that wrote
it, and the SHA-256 of every byte before. ``torch.load`` reads it as it reads any other.
"""

import contextlib
import hashlib
import io
import json
import os
import struct
from pathlib import Path

import torch

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.training.events import State

FORMAT = 1
UNFINISHED = ".unfinished"
"""What the name of a checkpoint ends in that is still being written."""

_DIGEST_LENGTH = 64
_ARCHIVE_START = b"PK\x03\x04"


def save(state: State, path: Path) -> None:
    """Write a snapshot so that, whatever happens, either the old file or the new one is there.

    Before it takes the old one's place, the new one is read back from the file and compared.

    Raises:
        UserError: The disk is full, or the folder cannot be written, or the disk gives other bytes back than it was
            given; the old checkpoint is untouched.
    """
    sealed = _seal({"format": FORMAT, **state})
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        load(unfinished)
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(unfinished)
        raise UserError(
            f"{path}: the checkpoint cannot be written ({error.strerror or error}); the last whole one is kept: "
            "make room, then go on with --resume"
        ) from None
    except BaseException:
        _remove(unfinished)
        raise


def load(path: Path) -> State:
    """Read a checkpoint; tensors come back on the CPU.

    Raises:
        UserError: There is none, or it is damaged, or another version of resnet-bench or torch wrote it.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no checkpoint here to go on from; start the run without --resume")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    written_by = _check_seal(content, path)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # It is what was written: what this torch cannot make of it, torch alone knows to say.
    except Exception as error:
        reason = describe_error(error, limit=200)
        raise UserError(
            f"{path}: torch {written_by} wrote this checkpoint and torch {torch.__version__} cannot read it "
            f"({reason}); go on with the torch that wrote it, or start the run anew"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise UserError(
            f"{path}: this is a checkpoint of format {found}, this version reads format {FORMAT}; "
            "go on with the version that wrote it, or start the run anew"
        )
    return state


def _seal(state: State) -> bytes:
    """A state as a zip archive whose comment names the torch that wrote it and the hash of all before the hash."""
    file = io.BytesIO()
    torch.save(state, file)
    comment = json.dumps({"torch": str(torch.__version__)}).encode("ascii")
    # An archive ends with the length of its comment, which torch leaves at 0.
    length = struct.pack("<H", len(comment) + _DIGEST_LENGTH)
    covered = b"".join([file.getbuffer()[:-2], length, comment])
    return covered + hashlib.sha256(covered).hexdigest().encode("ascii")


def _check_seal(content: bytes, path: Path) -> str:
    """Compare the hash, and give the version of torch that wrote the checkpoint."""
    covered = memoryview(content)[:-_DIGEST_LENGTH]
    digest = hashlib.sha256(covered).hexdigest().encode("ascii")
    if content[: len(_ARCHIVE_START)] != _ARCHIVE_START or content[-_DIGEST_LENGTH:] != digest:
        raise UserError(
            f"{path}: the checkpoint cannot be read: it is damaged or was not written by resnet-bench; "
            "start the run anew"
        )
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(content[content.rindex(b"{") : len(covered)])["torch"])
    return "of an unknown version"


def _remove(unfinished: Path) -> None:
    with contextlib.suppress(OSError):
        unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # A rename is only on the disk once its folder is; Windows has no such call.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
