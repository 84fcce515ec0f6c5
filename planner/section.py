"""A section of a document: an immutable record whose values are checked when it is made.

Its class holds annotated fields as a dataclass does, and is one. pydantic-core checks them, so
values are converted and errors worded as pydantic's are, and the methods are named as pydantic's.
What pydantic itself does in Python takes longer to import than a plan takes to make, so it is
loaded for JSON Schemas alone. To it a section is a type like any other, also inside its models.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from inspect import Parameter, Signature, cleandoc
from typing import Any, ClassVar, Self, cast, dataclass_transform, get_args

from pydantic_core import CoreSchema, SchemaSerializer, SchemaValidator

from planner.section_schema import Schema, section_schema


def _described(schema: dict[str, Any], section: type) -> None:
    """Of a dataclass, pydantic before 2.14 takes no description from the class."""
    if section.__doc__:
        schema["description"] = cleandoc(section.__doc__)


class _Signature:
    """The fields as arguments, for `help` and completion."""

    def __get__(self, _instance: object, section: type["Section"]) -> Signature:
        optional = dict(section._defaults())
        parameters = [
            Parameter(
                each.name,
                Parameter.KEYWORD_ONLY,
                default=optional[each.name]() if each.name in optional else Parameter.empty,
                annotation=each.type,
            )
            for each in fields(section)
        ]
        return Signature(parameters)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Section:
    """Raises pydantic_core.ValidationError for values that its fields do not take."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __pydantic_config__: ClassVar = {"extra": "forbid", "json_schema_extra": _described}

    __signature__: ClassVar = _Signature()

    def __init_subclass__(cls) -> None:
        said = cls.__doc__
        dataclass(init=False, frozen=True)(cls)
        cls.__doc__ = said  # where it is None, dataclasses set it to the signature

    def __init__(self, /, **values: object) -> None:
        self._validator().validate_python(values, self_instance=self)

    @classmethod
    def model_construct(cls, **values: object) -> Self:
        """Of values known to be right, which are not checked."""
        made = object.__new__(cls)
        made.__dict__.update({name: make() for name, make in cls._defaults()}, **values)
        return made

    @classmethod
    def model_validate(cls, values: object) -> Self:
        return cast(Self, cls._validator().validate_python(values))

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        return cast(Self, cls._validator().validate_json(text))

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """With other values for some fields, which are checked."""
        return replace(self, **update)

    def model_dump(
        self,
        *,
        include: set[str] | None = None,
        exclude: set[str] | None = None,
        exclude_none: bool = False,
    ) -> dict[str, Any]:
        """The values as JSON holds them."""
        found = self._serializer().to_python(
            self, mode="json", include=include, exclude=exclude, exclude_none=exclude_none
        )
        return cast(dict[str, Any], found)

    def model_dump_json(self, *, indent: int | None = None, exclude_none: bool = False) -> str:
        text = self._serializer().to_json(self, indent=indent, exclude_none=exclude_none)
        return text.decode()

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        from pydantic import TypeAdapter  # noqa: PLC0415, see the module

        return TypeAdapter(cls).json_schema()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> Schema:
        return section_schema(cls)

    @classmethod
    @cache
    def _validator(cls) -> SchemaValidator:
        return SchemaValidator(cast(CoreSchema, section_schema(cls)))

    @classmethod
    @cache
    def _serializer(cls) -> SchemaSerializer:
        return SchemaSerializer(cast(CoreSchema, section_schema(cls)))

    @classmethod
    @cache
    def _defaults(cls) -> tuple[tuple[str, Callable[[], object]], ...]:
        return tuple(
            (each.name, (lambda default=each.default: default) if factory is MISSING else factory)
            for each in fields(cls)
            if (factory := each.default_factory) is not MISSING or each.default is not MISSING
        )


def inner_section(annotation: object) -> type[Section] | None:
    """The section that an annotation names, in whatever union or sequence."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (inner_section(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)
