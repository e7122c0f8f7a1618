"""One definition of a run's throughput, for the terminal, MLflow and the report."""

from resnet_bench.base.throughput import settled


def test_a_settled_epoch_is_the_median_without_the_first() -> None:
    assert settled([9.0, 2.0, 1.0, 3.0]) == 2.0
    assert settled([9.0]) == 9.0
    assert settled([]) is None
    assert settled([10.0, 100.0, 120.0]) == 110.0
