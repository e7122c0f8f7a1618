"""Run plans: prepare, run and resume jobs."""
