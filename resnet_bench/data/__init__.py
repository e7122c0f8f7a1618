"""Images: sources, cache, loaders."""
