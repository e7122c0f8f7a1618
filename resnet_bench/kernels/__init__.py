"""Faster CPU kernels, each equal to torch's up to rounding."""
