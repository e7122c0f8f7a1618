"""JSON schemas of the TOML files, made from the models that read them, for editors.

A schema says which keys there are, what each takes and what it means. What rules relate keys to one another only
``resnet-bench validate`` knows. In a file that extends another, and in a profile, every key may be missing.
"""

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from resnet_bench.recipe.benchmark import Benchmark, Source
from resnet_bench.recipe.dataset_files import DatasetFile
from resnet_bench.recipe.limits import LimitsFile
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.schema import NOT_GIVEN, MaybeNotGiven

JsonSchema = dict[str, Any]

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What taplo, the checker of TOML files in editors, reads."""


def benchmark_schema() -> JsonSchema:
    """Return the schema of a file in ``benchmarks/``."""
    schema = file_schema(Benchmark)
    partial = partial_tables(schema, [Recipe])
    ref = {"$ref": f"#/$defs/{partial}"}
    for name, table in (("recipe", ref), ("profiles", profiles_schema(ref))):
        schema["properties"][name] = {**table, "description": schema["properties"][name]["description"]}
    # Of a parent a file inherits what it does not say itself.
    schema["$defs"]["Source"].pop("required")
    needed = {name: {"required": _required(table)} for name, table in (("source", Source), ("recipe", Recipe))}
    schema.pop("required")
    schema["anyOf"] = [{"required": ["extends"]}, {"required": list(needed), "properties": needed}]
    return schema


def dataset_schema() -> JsonSchema:
    """Return the schema of a file in ``datasets/``."""
    return file_schema(DatasetFile)


def limits_schema() -> JsonSchema:
    """Return the schema of ``limits.toml``."""
    return file_schema(LimitsFile)


def _required(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def file_schema(model: type[BaseModel]) -> JsonSchema:
    """Return the schema of the files of a model; where it has a name, that is the file's."""
    schema = model.model_json_schema()
    if "$ref" in schema:
        # A table that holds itself, as a study does in its profiles, is among the definitions.
        schema = {**schema["$defs"].pop(model.__name__), "$defs": schema["$defs"]}
    schema = _for_toml(schema)
    if schema["properties"].pop("name", None) is not None:
        schema["required"].remove("name")
    for table in [model, *models_below(model)]:
        properties = (schema if table is model else schema["$defs"].get(table.__name__, {})).get("properties", {})
        told = meanings(table)
        for name, field in table.model_fields.items():
            if MaybeNotGiven in field.metadata and name in properties:
                properties[name] = _removable(properties[name])
            if name in properties and name in told:
                properties[name] = {**properties[name], "description": told[name]}
    return {"$schema": DIALECT, **schema}


def partial_tables(schema: JsonSchema, models: Iterable[type[BaseModel]]) -> str:
    """Add definitions of tables in which nothing is required.

    Args:
        schema: The schema of a file; it gets the definitions.
        models: The tables; those below them become partial too.

    Returns:
        The name of the first one's definition.
    """
    models = list(models)
    tables = dict.fromkeys([table for model in models for table in (model, *models_below(model))])
    definitions = schema["$defs"]
    renamed = {f"#/$defs/{table.__name__}": f"#/$defs/Partial{table.__name__}" for table in tables}
    for table in tables:
        if table.__name__ in definitions:
            definitions[f"Partial{table.__name__}"] = _partial(definitions[table.__name__], renamed)
    return f"Partial{models[0].__name__}"


def models_below(model: type[BaseModel]) -> list[type[BaseModel]]:
    """List the models of a model's fields, and of theirs, each once."""
    found: dict[type[BaseModel], None] = {}
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation = waiting.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in found and annotation is not model:
                found[annotation] = None
                waiting += [field.annotation for field in annotation.model_fields.values()]
        else:
            waiting += get_args(annotation)
    return list(found)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings below a model's fields say; nothing where its source is not at hand."""
    found: dict[str, str] = {}
    for table in reversed(model.__mro__):
        if not issubclass(table, BaseModel) or table is BaseModel:
            continue
        with contextlib.suppress(OSError, SyntaxError):
            body = ast.parse(textwrap.dedent(inspect.getsource(table))).body[0]
            for field, text in pairwise(body.body if isinstance(body, ast.ClassDef) else ()):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    match text:
                        case ast.Expr(value=ast.Constant(value=str(words))):
                            found[field.target.id] = inspect.cleandoc(words)
    return found


def profiles_schema(table: JsonSchema) -> JsonSchema:
    """Return the schema of the table `profiles`."""
    return {"type": "object", "properties": {"smoke": table}, "additionalProperties": False}


def _for_toml(node: Any) -> Any:
    """What TOML can hold: no null; and what draft 7 knows: lists of one kind of item."""
    if isinstance(node, list):
        return [_for_toml(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    found = {key: _for_toml(value) for key, value in node.items() if key not in ("discriminator", "title")}
    if "gt" in found:
        found["exclusiveMinimum"] = found.pop("gt")
    if isinstance(node.get("properties"), Mapping):
        # A key may be called title.
        found["properties"] = {key: _for_toml(value) for key, value in node["properties"].items()}
    if isinstance(items := found.pop("prefixItems", None), list):
        found["items"] = items[0] if all(item == items[0] for item in items) else {"anyOf": items}
    if "anyOf" in found:
        found["anyOf"] = [choice for choice in found["anyOf"] if choice != {"type": "null"}]
        if len(found["anyOf"]) == 1:
            found = {**found.pop("anyOf")[0], **{key: value for key, value in found.items() if key != "anyOf"}}
    if "default" in found and (found["default"] is None or isinstance(found["default"], dict | list)):
        del found["default"]
    if "$ref" in found and len(found) > 1:
        # Draft 7 reads nothing beside a reference.
        found = {"allOf": [{"$ref": found.pop("$ref")}], **found}
    return found


def _removable(schema: JsonSchema) -> JsonSchema:
    described: JsonSchema = {key: schema[key] for key in ("description", "default") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in described}
    choices = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {"anyOf": [*choices, {"const": NOT_GIVEN}], **described}


def _partial(node: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(node, list):
        return [_partial(item, renamed) for item in node]
    if not isinstance(node, Mapping):
        return renamed.get(node, node) if isinstance(node, str) else node
    # A key of a table may be called required.
    kept = {key: value for key, value in node.items() if key != "required" or isinstance(value, dict)}
    found = {key: _partial(value, renamed) for key, value in kept.items()}
    if "oneOf" in found:
        # Without the name that tells the tables apart, several of them may fit.
        found["anyOf"] = found.pop("oneOf")
    return found
