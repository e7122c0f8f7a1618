"""Turn the events of a run into an MLflow run without delaying training."""
