"""The timing of kernels, on shapes small enough for a test."""

import pytest

from tools import kernels


def test_every_kernel_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels, "CONVOLUTIONS", ((2, 8, 8, 4, 1), (2, 8, 8, 4, 2)))
    monkeypatch.setattr(kernels, "LAYERS", ((2, 16, 4, "pool norm silu"),))
    monkeypatch.setattr(kernels, "BLOCKS", tuple((2, 64, 4, *block[3:]) for block in kernels.BLOCKS[:1]))
    kernels.time_convolutions(1)
    kernels.time_layers(1)
    monkeypatch.setattr(kernels, "FP32_CONVOLUTIONS", ((2, 16, 16, 4, 1),))
    kernels.time_convolutions(1, kernels.PRECISIONS["fp32"], kernels.CLOCKS["cpu"])
    rows = capsys.readouterr().out.splitlines()
    passes = [row.split()[5] for row in rows[1:7]]
    assert passes == ["forward", "grad_input", "grad_weight"] * 2
    # Winograd is for stride 1, the direct kernel for others.
    assert [row.split()[9:11] for row in rows[4:7]] == [["-", "-"]] * 3
    assert [row.split()[11] for row in rows[1:4]] == ["-"] * 3
    assert [row.split()[5] for row in rows[-3:]] == passes[:3]
    rows = rows[:-4]
    assert [row.split()[3:-3] for row in rows[8:]] == [["pool", "norm", "silu"], ["resnet18"]]
    assert all(float(row.split()[-1]) > 0 for row in rows[8:])


@pytest.mark.slow
def test_whole_steps_are_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels, "STEPS", (("resnet18-step-decay", 2),))
    kernels.time_steps(1, threads=1)
    _, row = capsys.readouterr().out.splitlines()
    name, count, *numbers = row.split()
    assert (name, count) == ("resnet18-step-decay", "2")
    assert len(numbers) == 5
    assert all(float(number) > 0 for number in numbers)
