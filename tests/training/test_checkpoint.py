"""Checkpoints: whole or not at all, and nothing in them is ever run."""

import errno
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.training import checkpoint
from tests.reliability.faults import FaultyDisk

STATE = {"network": {"weight": torch.arange(6.0).view(2, 3)}, "position": {"epoch": 3, "loss_sum": 1.25}, "seed": 7}


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(STATE, path)
    state = checkpoint.load(path)
    assert torch.equal(state["network"]["weight"], STATE["network"]["weight"])
    assert state["position"] == STATE["position"]
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_torch_reads_it_as_it_reads_any_other(tmp_path: Path) -> None:
    checkpoint.save(STATE, tmp_path / "last.pt")
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert torch.equal(state["network"]["weight"], STATE["network"]["weight"])
    assert zipfile.ZipFile(tmp_path / "last.pt").testzip() is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_write_fault_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "last.pt"
    reached: list[str] = []
    number = 0
    while len(reached) == number:
        number += 1
        checkpoint.save(STATE, path)
        said = ""
        with FaultyDisk(number, code).attached(monkeypatch, tmp_path) as disk:
            try:
                checkpoint.save({**STATE, "seed": 8}, path)
            except UserError as error:
                said = str(error)
        reached = disk.reached
        assert ("the last whole one is kept" in said) == (disk.fired == 1)
        # Only the folder's own fsync comes behind the rename.
        assert checkpoint.load(path)["seed"] == (8 if number > 3 else 7), disk.reached
        assert list(tmp_path.iterdir()) == [path]
    assert reached == ["write", "fsync", "rename", "fsync"]


def test_a_disk_that_gives_back_other_bytes_is_noticed_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(STATE, path)
    read = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda file: read(file).replace(b"epoch", b"epocH"))
        with pytest.raises(UserError, match="damaged"):
            checkpoint.save({**STATE, "seed": 8}, path)
    assert checkpoint.load(path)["seed"] == 7
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of the folder")
    with pytest.raises(UserError, match=r"the checkpoint cannot be written \((Not a directory|File exists)\)"):
        checkpoint.save(STATE, tmp_path / "file" / "last.pt")


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint here"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_checkpoint_of_another_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.pt"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        checkpoint.save(STATE, path)
    with pytest.raises(UserError, match=f"format 99, this version reads format {checkpoint.FORMAT}"):
        checkpoint.load(path)


def test_a_checkpoint_that_this_torch_cannot_read_names_the_one_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.1")
        checkpoint.save(STATE, path)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unknown record version\nmore of it")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=r"torch 99\.1 wrote this .* cannot read it \(unknown record version\)"):
        checkpoint.load(path)


def seal(content: bytes) -> bytes:
    """What an attacker would do who knows the format."""
    import hashlib

    return content + hashlib.sha256(content).hexdigest().encode()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (sentinel,)

    archive, bare = tmp_path / "archive.pt", tmp_path / "bare.pt"
    torch.save({"format": checkpoint.FORMAT, "network": Malicious()}, archive)
    bare.write_bytes(pickle.dumps({"format": checkpoint.FORMAT, "network": Malicious()}, protocol=2))
    for content in (archive.read_bytes(), bare.read_bytes()):
        for attack in (content, seal(content)):
            path = tmp_path / "malicious.pt"
            path.write_bytes(attack)
            with pytest.raises(UserError, match="cannot"):
                checkpoint.load(path)
    assert not sentinel.exists()


def test_damaged_or_cut_off_at_any_byte_it_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(STATE, path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"last\.pt: the checkpoint cannot be read"):
                checkpoint.load(path)
    assert len(whole) > 1000


@settings(max_examples=60)
@given(
    cut=st.integers(0, 1000),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4),
    tail=st.binary(max_size=100),
)
def test_damage_is_named_even_where_the_hash_was_made_to_fit(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]], tail: bytes
) -> None:
    """Only torch's own reader stands behind the hash: it says no, or what it gives is plain values and tensors."""
    path = tmp_path / "damaged.pt"
    checkpoint.save(STATE, path)
    content = bytearray(path.read_bytes()[: -64 - cut] + tail + b".")
    for position, mask in flips:
        content[position % len(content)] ^= mask
    path.write_bytes(seal(bytes(content)))
    try:
        state = checkpoint.load(path)
    except UserError:
        return
    assert state["format"] == checkpoint.FORMAT
