"""The networks: one file a source, and one table of their names."""

from resnet_bench.models.catalogue import Options, build, names, validate
from resnet_bench.models.size import count_macs, count_parameters

__all__ = ["Options", "build", "count_macs", "count_parameters", "names", "validate"]
