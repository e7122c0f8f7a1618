"""Benchmarks and recipes: what is trained."""
