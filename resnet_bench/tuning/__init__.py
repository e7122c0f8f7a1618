"""Optuna studies over recipes."""
