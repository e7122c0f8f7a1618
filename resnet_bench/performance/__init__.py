"""How fast recipes train here: measured against their source's own way, and chosen from by measuring."""

from resnet_bench.performance.auto import tuned
from resnet_bench.performance.comparison import Arm, Comparison, Spread, compare

__all__ = ["Arm", "Comparison", "Spread", "compare", "tuned"]
