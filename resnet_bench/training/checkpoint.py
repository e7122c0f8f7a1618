"""Checkpoints: atomic writes, verified reads, and no code in them is ever run.

A checkpoint is a zip archive as ``torch.save`` writes it. The archive's comment seals it: it names the version of
torch, and ends with the SHA-256 of all bytes before. ``torch.load`` ignores the comment.
"""

import contextlib
import hashlib
import io
import json
import struct
from pathlib import Path

import torch

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.base.files import write_atomically
from resnet_bench.training.events import State

FORMAT = 2
"""Format 2 records which evaluations are done, so that a run resumes after any event."""

_DIGEST_LENGTH = 64
_ARCHIVE_START = b"PK\x03\x04"


def save(state: State, path: Path) -> None:
    """Write a snapshot atomically, and verify it before it replaces the previous one.

    Raises:
        UserError: The disk is full, the folder is not writable, or the file reads back differently; the previous
            checkpoint is unchanged.
    """
    sealed = _seal({"format": FORMAT, **state})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sealed, check=load)
    except OSError as error:
        raise UserError(
            f"{path}: the checkpoint cannot be written ({error.strerror or error}); the last whole one is kept: "
            "free disk space, then add --resume"
        ) from None


def load(path: Path) -> State:
    """Read a checkpoint; tensors come back on the CPU.

    Raises:
        UserError: There is none, it is damaged, or it was written by a version of resnet-bench or torch that is not
            compatible.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no checkpoint here; start the run without --resume")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    written_by = _check_seal(content, path)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # The hash matches, so only torch can say why it cannot read the file.
    except Exception as error:
        reason = describe_error(error, limit=200)
        raise UserError(
            f"{path}: torch {written_by} wrote this checkpoint and torch {torch.__version__} cannot read it "
            f"({reason}); resume with that version of torch, or start the run from scratch"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise UserError(
            f"{path}: this is a checkpoint of format {found}, this version reads format {FORMAT}; "
            "resume with the version that wrote it, or start the run from scratch"
        )
    return state


def _seal(state: State) -> bytes:
    """Serialize a state, with the sealing comment."""
    file = io.BytesIO()
    torch.save(state, file)
    comment = json.dumps({"torch": str(torch.__version__)}).encode("ascii")
    # An archive ends with the length of its comment, which torch sets to 0.
    length = struct.pack("<H", len(comment) + _DIGEST_LENGTH)
    covered = b"".join([file.getbuffer()[:-2], length, comment])
    return covered + hashlib.sha256(covered).hexdigest().encode("ascii")


def _check_seal(content: bytes, path: Path) -> str:
    """Verify the hash; return the version of torch that wrote the checkpoint."""
    covered = memoryview(content)[:-_DIGEST_LENGTH]
    digest = hashlib.sha256(covered).hexdigest().encode("ascii")
    if content[: len(_ARCHIVE_START)] != _ARCHIVE_START or content[-_DIGEST_LENGTH:] != digest:
        raise UserError(
            f"{path}: the checkpoint cannot be read: it is damaged or was not written by resnet-bench; "
            "start the run from scratch"
        )
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(content[content.rindex(b"{") : len(covered)])["torch"])
    return "of an unknown version"
