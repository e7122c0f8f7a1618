"""The networks: one file a source, and one table of their names."""

from resnet_bench.models.catalogue import Options, WhiteningLayer, build, names, validate
from resnet_bench.models.of_recipe import build_network, frozen_parameters, network_outline, recipe_macs
from resnet_bench.models.size import count_macs, count_parameters
from resnet_bench.models.whitening import PatchWhitening, Whitened

__all__ = [
    "Options",
    "PatchWhitening",
    "Whitened",
    "WhiteningLayer",
    "build",
    "build_network",
    "count_macs",
    "count_parameters",
    "frozen_parameters",
    "names",
    "network_outline",
    "recipe_macs",
    "validate",
]
