"""Measure speed, energy and time, and choose the fastest execution."""
