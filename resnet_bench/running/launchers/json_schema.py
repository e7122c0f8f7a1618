"""The JSON schema of a launcher's file, for editors."""

from resnet_bench.recipe.json_schema import JsonSchema, file_schema
from resnet_bench.running.launchers.options import TIME, SlurmOptions


def launcher_schema() -> JsonSchema:
    """Return the JSON schema of a file in ``launchers/``."""
    schema = file_schema(SlurmOptions)
    # A limit may be written as a time.
    time = schema["properties"]["time"]
    schema["properties"]["time"] = {
        "anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "pattern": f"^{TIME.pattern}$"}],
        "default": time["default"],
        "description": time["description"],
    }
    return schema
