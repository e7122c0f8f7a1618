"""The JSON schema of a study's file, for editors."""

from resnet_bench.recipe.json_schema import JsonSchema, benchmark_schema, file_schema, partial_tables, profiles_schema
from resnet_bench.tuning.study import Parameter, Study


def study_schema() -> JsonSchema:
    """Return the schema of a file in ``studies/``."""
    schema = file_schema(Study)
    recipes = benchmark_schema()["$defs"]
    schema["$defs"] |= {name: table for name, table in recipes.items() if name not in schema["$defs"]}
    partial_tables(schema, [Parameter])
    properties = schema["properties"]
    properties["recipe"] = {"$ref": "#/$defs/PartialRecipe"}
    # TOML reads optimizer.lr = {…} as tables in tables.
    for space, parameter in (("Space", "Parameter"), ("PartialSpace", "PartialParameter")):
        below = [{"$ref": f"#/$defs/{parameter}"}, {"$ref": f"#/$defs/{space}"}]
        schema["$defs"][space] = {"type": "object", "minProperties": 1, "additionalProperties": {"anyOf": below}}
    properties["space"] = {"$ref": "#/$defs/Space"}
    budget = {key: value for key, value in schema["$defs"]["Budget"].items() if key != "required"}
    schema["$defs"]["PartialBudget"] = budget
    changes = {key: value for key, value in properties.items() if key != "profiles"}
    changes |= {"space": {"$ref": "#/$defs/PartialSpace"}, "budget": {"$ref": "#/$defs/PartialBudget"}}
    properties["profiles"] = profiles_schema({"type": "object", "properties": changes, "additionalProperties": False})
    return schema
