"""A benchmark suite for residual networks on CIFAR: recipes, claims, runs, studies and reports."""
