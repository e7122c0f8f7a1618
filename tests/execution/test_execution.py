"""What an execution resolves to, and that it leaves no trace behind."""

import dataclasses
from pathlib import Path

import pytest
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.base.tuning_cache import machine_tuning_cache
from resnet_bench.execution.execution import SWITCHES, Execution
from tests.stub_cuda import needs_gpu


def test_the_cpu_is_always_there() -> None:
    execution = Execution.resolve("cpu", "fp32", threads=1)
    assert (execution.device, execution.precision, execution.device_type) == ("cpu", "fp32", "cpu")
    assert execution.device_name.endswith(", 1 thread")
    assert execution.asdict()["precision"] == "fp32"


@pytest.mark.parametrize(
    ("device", "sentence"), [("gpu", "there is no such device"), ("cuda:-1", "no such device"), ("", "no such device")]
)
def test_an_unknown_device_is_one_sentence(device: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Execution.resolve(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_says_what_to_write() -> None:
    with pytest.raises(UserError, match="write --device cpu"):
        Execution.resolve("cuda")
    assert Execution.resolve("auto").device == "cpu"


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_beyond_the_last_names_those_there_are() -> None:
    with pytest.raises(UserError, match="this machine's GPUs are"):
        Execution.resolve("cuda:99")


def test_tf32_is_refused_on_a_device_without_it() -> None:
    with pytest.raises(UserError, match="tf32 is a mode of NVIDIA GPUs"):
        Execution.resolve("cpu", "tf32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_process_is_left_as_it_was(precision) -> None:
    def switches() -> tuple[object, ...]:
        return (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
        )

    before = switches()
    execution = Execution.resolve("cpu", precision, deterministic=True, threads=1)

    def fail_within() -> None:
        with execution.applied():
            assert switches() == (False, False, True, False, 1)
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail_within()
    assert switches() == before


def test_autocast_rounds_only_where_it_is_asked_for() -> None:
    left, right = torch.randn(8, 8), torch.randn(8, 8)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Execution.resolve("cpu", precision).autocast():
            assert (left @ right).dtype == dtype


def test_plain_is_stock_pytorch() -> None:
    execution = Execution.resolve("cpu", mode="plain")
    assert (execution.precision, execution.channels_last, execution.fast_paths) == ("fp32", False, False)
    assert execution.weight_memory_format == execution.memory_format == torch.contiguous_format
    assert Execution.resolve("cpu", "bf16", mode="plain").precision == "bf16"


@pytest.mark.parametrize("mode", ["auto", "fast"])
def test_the_other_modes_take_what_pays_on_a_cpu(mode) -> None:
    execution = Execution.resolve("cpu", "fp32", mode=mode)
    assert (execution.precision, execution.channels_last, execution.fast_paths) == ("fp32", True, True)
    assert execution.asdict()["mode"] == mode
    assert "channels_last, fast paths" in execution.describe()
    assert not Execution.resolve("cpu", compile=True, mode=mode).fast_paths
    assert not execution.cuda_graphs


@pytest.mark.parametrize("mode", ["auto", "fast", "plain"])
def test_steps_are_captured_on_a_gpu_unless_plain_is_asked_for(mode, monkeypatch) -> None:
    monkeypatch.setattr("resnet_bench.execution.execution.find_device", lambda device: "cuda:0")
    execution = Execution.resolve("cuda", "fp32", mode=mode)
    assert execution.cuda_graphs == (mode != "plain")
    assert ("CUDA graphs" in execution.describe()) == execution.cuda_graphs


def test_every_switch_is_a_field_that_descriptions_name() -> None:
    execution = Execution("cpu", "fp32", channels_last=False, compile=False, deterministic=False, threads=1)
    fields = [field.name for field in dataclasses.fields(execution) if field.type is bool]
    assert sorted(SWITCHES) == sorted(fields)
    for name in SWITCHES:
        switched = dataclasses.replace(execution, **{name: True})
        assert switched.describe() != execution.describe()


def test_what_was_measured_is_of_the_compiler_that_made_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one there are no kernels of ours to choose, and a newer one may make faster ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine_tuning_cache.cache_clear()
    execution = Execution.resolve("cpu", threads=1)
    execution.memory().put("forward", "winograd")
    assert execution.memory().get("forward") == "winograd"
    compiler = tmp_path / "newer"
    compiler.write_text("#!/bin/sh\necho 99.1\n")
    compiler.chmod(0o700)
    for command in (str(compiler), "none-such"):
        monkeypatch.setenv("CC", command)
        assert execution.memory().get("forward") is None


def test_what_was_measured_under_limits_of_torchs_libraries_is_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    machine_tuning_cache.cache_clear()
    execution = Execution.resolve("cpu", threads=1)
    execution.memory().put("forward", "winograd")
    for name in names:
        for value in ("AVX2", "SSE41"):
            monkeypatch.setenv(name, value)
            assert execution.memory().get("forward") is None
            execution.memory().put("forward", f"by {name}={value}")
            assert execution.memory().get("forward") == f"by {name}={value}"
        # Set to nothing, it limits nothing.
        monkeypatch.setenv(name, "")
        assert execution.memory().get("forward") == "winograd"
