"""What pydantic-core is told of a section: its fields' annotations in the terms of a CoreSchema."""

import json
import types
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from pydantic import JsonValue as JsonValue
else:
    JsonValue = Annotated[object, "what JSON can hold"]

TAGS = ("text", "other")
"""In the location of an error: as which of them a value was read that may be either."""

Schema = dict[str, Any]
"""A part of pydantic_core.CoreSchema, whose own types take time to import."""

SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}


class Limits:
    """Of an annotated value, by pydantic-core's names: ge, gt, le, lt, min_length."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(
        self, source: object, handler: Callable[[object], Schema]
    ) -> Schema:
        return {**handler(source), **self.limits}


def section_schema(section: type) -> Schema:
    """The schema of a section, with each of those within it defined once."""
    definitions: dict[str, Schema] = {}
    reference = _section(section, definitions)
    return {"type": "definitions", "schema": reference, "definitions": list(definitions.values())}


def _section(section: Any, definitions: dict[str, Schema]) -> Schema:  # noqa: ANN401
    name = f"{section.__module__}.{section.__qualname__}:{id(section)}"  # as pydantic's own
    if name not in definitions:
        definitions[name] = {
            "type": "dataclass",
            "cls": section,
            "ref": name,
            "fields": [each.name for each in fields(section)],
            "frozen": True,
            "config": {"title": section.__name__},
            "schema": {
                "type": "dataclass-args",
                "dataclass_name": section.__name__,
                "fields": [_field(each, definitions) for each in fields(section)],
                "extra_behavior": "forbid",
            },
        }
    return {"type": "definition-ref", "schema_ref": name}


def _field(field: Field[Any], definitions: dict[str, Schema]) -> Schema:
    schema = _schema(field.type, definitions)
    if field.default is not MISSING:
        schema = {"type": "default", "schema": schema, "default": field.default}
    elif field.default_factory is not MISSING:
        factory = field.default_factory
        schema = {"type": "default", "schema": schema, "default_factory": factory}
    return {"type": "dataclass-field", "name": field.name, "schema": schema, "kw_only": True}


def _schema(annotation: Any, definitions: dict[str, Schema]) -> Schema:  # noqa: ANN401
    if annotation in SCALARS:
        return {"type": SCALARS[annotation]}
    if annotation is JsonValue:
        return JSON
    if is_dataclass(annotation):
        return _section(annotation, definitions)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin not in COMPOSED or (origin is tuple and arguments[1:] != (...,)):
        raise TypeError(
            f"a section cannot hold {annotation!r}; hint: it holds bool, int, float, str, sections,"
            " and Literal, Annotated with Limits, unions, dict[...] and tuple[..., ...] of those"
        )
    return COMPOSED[origin](arguments, definitions)


def _union(members: tuple[Any, ...], definitions: dict[str, Schema]) -> Schema:
    """Of text and one thing else, told apart by which it is, so that an error speaks of one."""
    choices = [_schema(each, definitions) for each in members if each is not types.NoneType]
    if len(choices) == 1:
        schema = choices[0]
    elif [choice["type"] for choice in choices] in (["str", "dict"], ["str", "definition-ref"]):
        tagged = dict(zip(TAGS, choices, strict=True))
        schema = {"type": "tagged-union", "choices": tagged, "discriminator": _tag}
    else:
        schema = {"type": "union", "choices": choices}
    return {"type": "nullable", "schema": schema} if types.NoneType in members else schema


def _tag(value: object) -> str:
    return TAGS[not isinstance(value, str)]


def _tuple(arguments: tuple[Any, ...], definitions: dict[str, Schema]) -> Schema:
    items = [_schema(arguments[0], definitions)]  # the other is the ellipsis
    return {"type": "tuple", "items_schema": items, "variadic_item_index": 0}


def _dict(arguments: tuple[Any, ...], definitions: dict[str, Schema]) -> Schema:
    keys, values = (_schema(each, definitions) for each in arguments)
    return {"type": "dict", "keys_schema": keys, "values_schema": values}


def _limited(arguments: tuple[Any, ...], definitions: dict[str, Schema]) -> Schema:
    annotation, limits = arguments
    return {**_schema(annotation, definitions), **limits.limits}


def _literal(arguments: tuple[Any, ...], _definitions: dict[str, Schema]) -> Schema:
    return {"type": "literal", "expected": list(arguments)}


def _json_value(value: object) -> object:
    """As it is read back: whoever holds the value cannot change the section by it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        raise PydanticCustomError(
            "invalid-json-value", "input was not a valid JSON value"
        ) from None


JSON = {
    "type": "json-or-python",
    "json_schema": {"type": "any"},
    "python_schema": {
        "type": "function-plain",
        "function": {"type": "no-info", "function": _json_value},
    },
}
COMPOSED: dict[Any, Callable[[tuple[Any, ...], dict[str, Schema]], Schema]] = {
    Annotated: _limited,
    Literal: _literal,
    Union: _union,
    dict: _dict,
    tuple: _tuple,
    types.UnionType: _union,
}
