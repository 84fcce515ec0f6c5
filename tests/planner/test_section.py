"""Sections against pydantic's own models of the same annotations: same values, same errors."""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import ValidationError

from planner import Case, Spec, estimate, frontier, recommend
from planner.section import Section, inner_section
from planner.section_schema import TAGS, JsonValue, section_schema
from planner.spec import Data, Hardware, TrainingSpec

Path = tuple[str | int, ...]

CPU = {"kind": "cpu", "memory_gib": 16, "bandwidth_gb_per_second": 20, "fp32_tflops": 0.2}
SPEC = {
    "model": "smollm2-135m",
    "task": "causal_lm",
    "vram_gib": 16,
    "training": {"hardware": CPU},
    "serving": {"hardware": "cpu-2core", "tenants": 4},
    "pinned": {"targets": ["attention.query"], "method": "lora"},
}
CONFIG = {"model_type": "llama", "hidden_size": 64, "rope_scaling": {"factors": [1, 2.5, None]}}
SECTIONS: dict[str, Section] = {
    "spec": Spec.model_validate(SPEC),
    "spec of a config": Spec.model_validate({**SPEC, "model": CONFIG}),
    "plan": recommend(Spec.model_validate(SPEC)),
    "case": Case.model_validate({"model": CONFIG, "hardware": CPU, "targets": ["attention.query"]}),
    "estimate": estimate(Case(model="smollm2-135m")),
    "frontier": frontier(Spec.model_validate(SPEC)),
}
SAID = {"unexpected_keyword_argument": "extra_forbidden", "dataclass_type": "model_type"}
"""Errors that pydantic has another name for where a class is a model."""


@cache
def reference(section: type[Section]) -> type[pydantic.BaseModel]:
    """pydantic's model of that section."""
    declared: dict[str, Any] = {}
    for each in dataclasses.fields(section):
        default: Any = pydantic.Field()
        if each.default is not dataclasses.MISSING:
            default = each.default
        elif each.default_factory is not dataclasses.MISSING:
            default = pydantic.Field(default_factory=dict, validate_default=True)
        declared[each.name] = (annotation(each.type), default)
    config = pydantic.ConfigDict(extra="forbid", frozen=True)
    return pydantic.create_model(section.__name__, __config__=config, **declared)


def annotation(own: Any) -> Any:  # noqa: ANN401, as types are
    """With pydantic's models for sections, and its unions told apart by whether a value is text."""
    if own is JsonValue:
        return pydantic.JsonValue
    if isinstance(own, type) and issubclass(own, Section):
        return reference(own)
    origin, arguments = get_origin(own), get_args(own)
    if origin in (types.UnionType, Union):
        told = [annotation(each) for each in arguments if each is not types.NoneType]
        if len(told) == 2 and told[0] is str and told[1] is not int:
            tagged = [Annotated[each, pydantic.Tag(tag)] for each, tag in zip(told, TAGS, strict=1)]
            told = [Annotated[Union[*tagged], pydantic.Discriminator(tag_of)]]
        return Union[*told, None] if types.NoneType in arguments else Union[*told]
    if origin is tuple:
        return tuple[annotation(arguments[0]), ...]
    if origin is dict:
        return dict[arguments[0], annotation(arguments[1])]
    return own


def tag_of(value: object) -> str:
    return TAGS[0] if isinstance(value, str) else TAGS[1]


def outcome(kind: type[Section | pydantic.BaseModel], document: object) -> object:
    """The values read of a document, or where it is wrong and why."""
    try:
        return kind.model_validate(document).model_dump_json()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    return sorted(
        (str(found["loc"]), SAID.get(found["type"], found["type"]), type(found["input"]).__name__)
        for found in problems
    )


def paths(document: object, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from paths(value, (*path, key))


def replaced(document: dict[Any, Any] | list[Any], path: Path, value: object) -> object:
    if not path:
        return value
    copy = document.copy()
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**63, 10**13, 1.5, 1e-9, float("inf"), float("nan")])
    | st.sampled_from(["", "1", "2.5", "true", "gpu", "lora", "nf4", "causal_lm"])
    | st.text(max_size=3)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@pytest.mark.parametrize("name", SECTIONS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_documents_are_read_as_pydantic_reads_them(name: str, data: st.DataObject) -> None:
    section = SECTIONS[name]
    document = section.model_dump()
    path = data.draw(st.sampled_from(list(paths(document))))
    changed = replaced(document, path, data.draw(values))
    assert outcome(type(section), changed) == outcome(reference(type(section)), changed)


@pytest.mark.parametrize("name", SECTIONS)
def test_keys_that_are_missing_or_unknown_are_all_named(name: str) -> None:
    section = SECTIONS[name]
    document = section.model_dump()
    for path in list(paths(document)):
        for change in ({}, {"unheard_of": 1}):
            changed = replaced(document, path, change)
            assert outcome(type(section), changed) == outcome(reference(type(section)), changed)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_written_as_pydantic_writes_it_and_read_back(name: str) -> None:
    section = SECTIONS[name]
    same = reference(type(section)).model_validate(section.model_dump())
    text = section.model_dump_json(indent=2)
    assert text == same.model_dump_json(indent=2)
    assert section.model_dump_json(exclude_none=True) == same.model_dump_json(exclude_none=True)
    assert section.model_dump() == same.model_dump(mode="json")
    assert type(section).model_validate_json(text) == section


def test_to_pydantic_a_section_is_a_type_like_any_other() -> None:
    class Request(pydantic.BaseModel):
        spec: Spec
        extra: tuple[Hardware, ...] = ()

    request = Request.model_validate({"spec": SPEC, "extra": [CPU]})
    assert request.spec == Spec.model_validate(SPEC)
    assert request.model_dump(mode="json")["spec"] == request.spec.model_dump()
    with pytest.raises(ValidationError, match=r"spec\.vram_gib"):
        Request.model_validate({"spec": {**SPEC, "vram_gib": -1}})


def test_values_are_checked_however_a_section_comes_about() -> None:
    spec = Spec(model="gpt2", task="causal_lm", vram_gib=8)
    assert spec.training == TrainingSpec()
    for change in ({"vram_gib": -1}, {"unheard_of": 1}, {"self": 1}, {"data": {"labels": 1}}):
        with pytest.raises(ValidationError):
            spec.model_copy(update=change)
        with pytest.raises(ValidationError):
            Spec(**{"model": "gpt2", "task": "causal_lm", "vram_gib": 8, **change})
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.vram_gib = 1  # type: ignore[misc]
    assert spec.vram_gib == 8


def test_a_config_is_held_as_json_holds_it() -> None:
    config: dict[str, Any] = {"factors": (1, 2), "labels": {0: ["no"]}}
    spec = Spec(model=config, task="causal_lm", vram_gib=8)
    config["labels"][0].append("yes")
    assert spec.model == {"factors": [1, 2], "labels": {"0": ["no"]}}
    assert Spec.model_validate_json(spec.model_dump_json()) == spec


def test_a_config_that_json_cannot_hold_is_refused() -> None:
    endless: dict[str, Any] = {}
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    endless["itself"] = endless
    for value in ({1, 2}, endless, deep):
        with pytest.raises(
            ValidationError, match=r"model\.other\.sizes\n  input was not a valid JSON"
        ):
            Spec(model={"sizes": value}, task="causal_lm", vram_gib=8)  # type: ignore[dict-item]


def test_equal_sections_are_one_key() -> None:
    one, same, other = (Hardware.model_validate(CPU | {"memory_gib": n}) for n in (4, 4.0, 5))
    assert {one, same, other} == {one, other}
    assert repr(Data(labels=2)) == "Data(examples=None, mean_tokens=None, labels=2)"


def test_sections_of_one_name_are_two() -> None:
    def made(kind: type) -> type[Section]:
        return type("Own", (Section,), {"__annotations__": {"value": kind}})

    class Both(Section):
        first: made(int)  # type: ignore[valid-type]
        second: made(str)  # type: ignore[valid-type]

    both = Both.model_validate({"first": {"value": 1}, "second": {"value": "b"}})
    assert both.model_dump() == {"first": {"value": 1}, "second": {"value": "b"}}


def test_sections_within_annotations() -> None:
    assert inner_section(str | Hardware | None) is Hardware
    assert inner_section(dict[str, tuple[Data, ...]]) is Data
    assert inner_section(Literal["name"] | None) is None


def test_help_names_the_fields() -> None:
    found = inspect.signature(Data)
    assert str(found).startswith("(*, examples: ")
    assert found.parameters["labels"].default is None
    assert inspect.signature(Spec).parameters["model"].default is inspect.Parameter.empty
    assert inspect.signature(Spec).parameters["data"].default == Data()


@pytest.mark.parametrize("held", [list[int], tuple[int, str], tuple[int], "int", object])
def test_what_a_section_cannot_hold_is_said(held: object) -> None:
    odd: Any = type("Odd", (Section,), {"__annotations__": {"parts": held}})
    with pytest.raises(TypeError, match=re.escape(f"cannot hold {held!r}; hint: it holds bool")):
        section_schema(odd)


def test_what_is_said_of_a_section_describes_it_in_schemas() -> None:
    class Described(Section):
        """Said of it."""

        size: int

    class Plain(Section):
        inner: Described

    schema = Plain.model_json_schema()
    assert (Plain.__doc__, schema.get("description")) == (None, None)
    assert schema["$defs"]["Described"]["description"] == "Said of it."
