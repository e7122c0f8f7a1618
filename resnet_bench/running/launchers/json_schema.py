"""The JSON schema of a launcher's file, for editors."""

from resnet_bench.recipe.json_schema import DIALECT, JsonSchema, file_schema
from resnet_bench.running.launchers.options import ENGINES, TIME


def launcher_schema() -> JsonSchema:
    """Return the JSON schema of a file in ``launchers/``."""
    schemas = {engine.options.__name__: file_schema(engine.options) for engine in ENGINES.values()}
    for schema in schemas.values():
        del schema["$schema"]
    # A limit may be written as a time.
    slurm = schemas["SlurmOptions"]["properties"]
    slurm["time"] = {
        "anyOf": [{"type": "integer", "minimum": 5}, {"type": "string", "pattern": f"^{TIME.pattern}$"}],
        "default": slurm["time"]["default"],
        "description": slurm["time"]["description"],
    }
    return {
        "$schema": DIALECT,
        "description": "Where runs train: jobs of a Slurm cluster, or tasks of a Ray cluster.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in schemas],
        "$defs": schemas,
    }
