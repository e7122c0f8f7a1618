"""Reports from what the tracking store holds."""
