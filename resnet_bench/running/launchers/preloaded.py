"""What training imports, for the server that child processes are forked from: it takes seconds, and is done once."""

import resnet_bench.running.prepare
import resnet_bench.running.run  # noqa: F401
from resnet_bench.tracking import mlflow_client

mlflow_client.load()
