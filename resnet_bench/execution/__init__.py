"""How a recipe is executed: device, precision, kernels."""
