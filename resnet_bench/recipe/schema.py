"""The base model of every TOML file, its types, and validation errors in words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import NAME_PATTERN, nearest, shown, unknown_name

OPTION_PATTERN = r"^[a-z][a-z0-9_]*$"
ADDRESS_PATTERN = r"^https://\S+$"
PRINTED_NUMBER = r"^\d{1,3}(\.\d+)?$"

NOT_GIVEN = "none"
"""Removes an optional key in a file that extends another, or in ``--set``: TOML has no null."""


def _absent(value: Any) -> Any:
    return None if isinstance(value, str) and value == NOT_GIVEN else value


def without_absent(options: Any) -> Any:
    """Drop the options that a file removes with ``none``."""
    if not isinstance(options, Mapping):
        return options
    return {key: value for key, value in options.items() if _absent(value) is not None}


def _three(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise ValueError(f"must be three numbers, for red, green and blue, got {shown(value)}")
    return value


def _one_reason(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        # pydantic would give one reason per type of the union.
        raise ValueError(f"must be true, false, a finite number or a string, got {shown(value)}") from None


Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
RGB = Annotated[tuple[float, float, float], Field(strict=False), BeforeValidator(_three)]
OptionValue = Annotated[bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | str, WrapValidator(_one_reason)]
MaybeNotGiven = BeforeValidator(_absent)


class Schema(BaseModel):
    """A frozen model that rejects unknown keys and converts nothing but whole numbers to floats."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


Model = TypeVar("Model", bound=BaseModel)


class BrokenRules(ValueError):
    """Several rules that one table breaks; raised by a model's validator.

    Args:
        sentences: One sentence per rule, at least one.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__(sentences[0])
        self.sentences = tuple(sentences)


class InvalidTable(UserError):
    """A table that does not fit its schema.

    Attributes:
        problems: One sentence per problem, each with its place; the message is the first and how many follow.
    """

    def __init__(self, where: str, sentences: Sequence[str]) -> None:
        more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
        super().__init__(f"{where}: {sentences[0]}{more}")
        self.problems = [f"{where}: {sentence}" for sentence in sentences]


def parse(schema: type[Model], table: Mapping[str, Any], *, where: str) -> Model:
    """Validate a table against a schema.

    Args:
        schema: The pydantic model to build.
        table: Nested tables as ``tomllib`` returns them.
        where: File or option that the table comes from, named in the error.

    Raises:
        InvalidTable: What is wrong: where, which key, why, and the nearest valid name.
    """
    try:
        return schema.model_validate(dict(table))
    except ValidationError as error:
        raise InvalidTable(where, _sentences(schema, error)) from None


def parse_json(schema: type[Model], content: bytes, *, where: str) -> Model:
    """Validate JSON against a schema.

    Raises:
        InvalidTable: What is wrong, likewise.
        UserError: It is not JSON.
    """
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] == "json_invalid":
            raise UserError(f"{where}: is not valid JSON") from None
        raise InvalidTable(where, _sentences(schema, error)) from None


def problems(schema: type[BaseModel], table: Mapping[str, Any]) -> list[str]:
    """List everything that is wrong with a table, in sentences; the most helpful first."""
    try:
        schema.model_validate(dict(table))
    except ValidationError as error:
        return _sentences(schema, error)
    return []


def rises(numbers: Sequence[int]) -> bool:
    """Check whether each number is larger than the one before it."""
    return list(numbers) == sorted(set(numbers))


def dotted_keys(annotation: Any, prefix: str = "") -> Iterable[str]:
    """Yield the dotted key of every field of the models in an annotation."""
    for model in _models_in(annotation):
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}"
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")


def _models_in(annotation: Any, *, items: bool = False) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif items or getattr(annotation, "__origin__", None) not in (tuple, dict):
        # The keys of a list's items, such as a phase's, have no dotted name.
        for argument in get_args(annotation):
            yield from _models_in(argument, items=items)


def _sentences(schema: type[BaseModel], error: ValidationError) -> list[str]:
    # A mistyped key is also a missing one: the unknown key says what to type.
    order = {"extra_forbidden": 0, "missing": 2}
    found = sorted(error.errors(include_url=False), key=lambda problem: order.get(problem["type"], 1))
    return [sentence for problem in found for sentence in _sentences_of(schema, problem)]


def _sentences_of(schema: type[BaseModel], problem: Mapping[str, Any]) -> list[str]:
    cause = problem.get("ctx", {}).get("error")
    if not isinstance(cause, BrokenRules):
        return [_sentence(schema, problem)]
    path, _ = _place(schema, problem["loc"])
    key = _dotted(path)
    return [f"{key}: {sentence}" if key else sentence for sentence in cause.sentences]


def _sentence(schema: type[BaseModel], problem: Mapping[str, Any]) -> str:
    path, siblings = _place(schema, problem["loc"])
    key = _dotted(part for part in path if part != "[key]")
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _unknown_key(schema, path, siblings)
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_invalid":
        context = problem["ctx"]
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return unknown_name(f"{key}.name", str(context["tag"]), tags)
    if kind == "union_tag_not_found":
        return f"{key}.name is missing"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
        if isinstance(problem["input"], str):
            return f"{key}: {unknown_name('value', problem['input'], choices)}"
        return f"{key}: must be one of {', '.join(choices)}, got {shown(problem['input'])}"
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{key}: {_PATTERNS[problem['ctx']['pattern']]}, got {shown(problem['input'])}"
    message = _PLAIN_MESSAGES.get(kind, str(problem["msg"]).removeprefix("Input "))
    return f"{key}: {message}, got {shown(problem['input'])}"


_PLAIN_MESSAGES = {
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": 'must be a string, in "quotes"',
    "too_long": "has too many values",
    "too_short": "has too few values",
}

_PATTERNS = {
    NAME_PATTERN: "a name is lower-case letters, digits and hyphens, such as resnet9-dropout",
    OPTION_PATTERN: "the name of an option is lower-case letters, digits and underscores",
    ADDRESS_PATTERN: "an address starts with https://",
    PRINTED_NUMBER: 'must be the number as it is printed, such as "82.87"',
}


def _place(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], set[str]]:
    """Locate a problem: the keys that lead to it, and the valid keys beside the last of them."""
    path: list[str] = []
    owners: list[type[BaseModel]] = []
    candidates = [schema]
    for part in location:
        tagged = [model for model in candidates if _tag(model) == part]
        if len(candidates) > 1 and tagged:
            # The tag of a discriminated union is in the location but is not a key of the file.
            candidates = tagged
            continue
        path.append(str(part))
        owners = candidates
        below = [
            found
            for model in candidates
            if part in model.model_fields
            for found in _models_in(model.model_fields[str(part)].annotation, items=True)
        ]
        candidates = below or candidates
    return path, {name for model in owners for name in model.model_fields}


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("name")
    values = get_args(field.annotation) if field is not None else ()
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def _unknown_key(schema: type[BaseModel], path: Sequence[str], siblings: Iterable[str]) -> str:
    *parents, name = path
    key, beside = _dotted(path), {sibling: _dotted([*parents, sibling]) for sibling in siblings}
    known = sorted(set(dotted_keys(schema)))
    if key in known:
        return f"{key} means nothing to this {_dotted(parents)}.name; there are: {', '.join(sorted(beside.values()))}"
    near = nearest(name, beside)
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown key {shown(key)}; did you mean {min(elsewhere, key=lambda other: other.count('.'))!r}?"
    return unknown_name("key", key, beside.values() if near is None else [beside[near]])


def _dotted(path: Iterable[str]) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))
