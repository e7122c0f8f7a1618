"""Checkpoints: whole or not at all, and nothing in them is ever run."""

import contextlib
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_bench.errors import UserError
from resnet_bench.training import checkpoint

STATE = {"network": {"weight": torch.arange(6.0).view(2, 3)}, "position": {"epoch": 3, "loss_sum": 1.25}, "seed": 7}


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(STATE, path)
    state = checkpoint.load(path)
    assert torch.equal(state["network"]["weight"], STATE["network"]["weight"])
    assert state["position"] == STATE["position"]
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(STATE, path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({**STATE, "seed": 8}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint here"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_checkpoint_of_another_format_says_so(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"format": 99, **STATE}, path)
    with pytest.raises(UserError, match="format 99, this version reads format 1"):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (sentinel,)

    for number, write in enumerate(
        (lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2)))
    ):
        path = tmp_path / f"malicious{number}.pt"
        write({"format": 1, "network": Malicious()}, path)
        with pytest.raises(UserError, match="cannot be read"):
            checkpoint.load(path)
    assert not sentinel.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flips=st.lists(st.floats(0, 0.999), max_size=3))
def test_a_damaged_checkpoint_is_an_error_or_unharmed(tmp_path: Path, cut: float, flips: list[float]) -> None:
    path = tmp_path / "damaged.pt"
    checkpoint.save(STATE, path)
    damaged = bytearray(path.read_bytes())
    for place in flips:
        damaged[int(place * len(damaged))] ^= 0xFF
    path.write_bytes(damaged[: max(1, int(cut * len(damaged)))])
    with contextlib.suppress(UserError):
        checkpoint.load(path)
