"""The networks, one file per source."""
