"""A benchmark suite for residual networks on CIFAR: recipes, claims, runs, studies and reports."""

import os

# Threads that wait for one another spin, by default for milliseconds, which costs other work on the machine its cores.
# OpenMP reads this when torch loads it; children inherit it. A user's setting comes first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
