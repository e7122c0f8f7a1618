"""Turns a study into trials, each an ordinary run, and ends with a tuned recipe and a fair comparison."""
