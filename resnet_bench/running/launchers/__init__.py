"""Ways to run tasks, by name."""
