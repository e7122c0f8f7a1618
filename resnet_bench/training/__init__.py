"""Train one recipe, as a generator of events."""
