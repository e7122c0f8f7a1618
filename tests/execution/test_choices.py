"""What is stored of an execution keeps to plain values, and stores of version 0.1.0 are read."""

import dataclasses
import json

import pytest

from resnet_bench.execution.choices import ExecutionMode, Precision, PrecisionChoice
from resnet_bench.execution.execution import Execution
from resnet_bench.tracking.vocabulary import OLD_EXECUTION_FIELDS, current_execution


def test_what_is_stored_is_plain() -> None:
    execution = Execution.resolve("cpu", PrecisionChoice.BF16, mode=ExecutionMode.FAST, threads=1)
    stored = json.loads(json.dumps(execution.asdict()))
    assert (stored["mode"], stored["precision"]) == ("fast", "bf16")
    assert all(type(value) in (str, int, bool) for value in execution.asdict().values())


@pytest.mark.parametrize("precision", ["bf16", PrecisionChoice.BF16])
def test_choices_may_be_given_as_text(precision: str) -> None:
    execution = Execution.resolve("cpu", precision, mode="fast", threads=1)
    assert execution == Execution.resolve("cpu", Precision.BF16, mode=ExecutionMode.FAST, threads=1)
    assert hash(execution) == hash(dataclasses.replace(execution, precision="bf16", mode="fast"))
    with pytest.raises(ValueError, match="fp64"):
        Execution.resolve("cpu", "fp64")


def test_fields_of_version_0_1_0_are_read() -> None:
    fields = {field.name for field in dataclasses.fields(Execution)}
    assert set(OLD_EXECUTION_FIELDS.values()) <= fields
    old = {"level": "auto", "graphs": False, "fused": True, "device": "cpu"}
    assert current_execution(old) == {"mode": "auto", "cuda_graphs": False, "fused_layers": True, "device": "cpu"}
    assert current_execution({**old, "fused_layers": False})["fused_layers"] is False
