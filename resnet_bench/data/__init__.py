"""Images: sources, cache, loaders. What a dataset is stands in ``recipe/datasets.py`` and ``datasets/NAME.toml``."""
