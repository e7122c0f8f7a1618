"""Verdicts, intervals and power: the rules that judge results."""
