"""Rules that judge results: intervals, verdicts and targets."""
