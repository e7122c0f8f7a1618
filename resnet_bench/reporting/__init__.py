"""Reads what the runs left in MLflow and says what it means: tables, verdicts, comparisons and pages."""
