"""The process of one command: what it leaves out changes no answer."""

import dataclasses
import subprocess
import sys

import pytest

from planner import catalog, recommend
from planner.documents import dump, load_spec
from planner.quick_start import SELDOM_CALLED, compiled_when_called

SPEC = catalog.specs_folder() / "examples" / "smollm2-tenants.json"


def test_a_process_answers_as_the_library_does() -> None:
    command = [sys.executable, "-W", "error", "-m", "planner.cli", "recommend", SPEC, "--json"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert found == dump(recommend(load_spec(SPEC)))


def test_schemas_are_loaded_when_pydantic_asks_for_them() -> None:
    code = """
import sys
from planner.quick_start import quick_start
quick_start()
import pydantic_core
stand_in = sys.modules["pydantic_core.core_schema"]
assert "IntSchema" not in vars(stand_in)
from pydantic import BaseModel
class Own(BaseModel):
    key: int
assert Own(key="1").key == 1
from pydantic_core import core_schema
assert core_schema is not stand_in and core_schema.int_schema() == {"type": "int"}
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="a class's methods are compiled at once")
@pytest.mark.parametrize("slots", [False, True])
def test_methods_of_dataclasses_are_compiled_when_they_are_called(
    monkeypatch: pytest.MonkeyPatch, *, slots: bool
) -> None:
    compiled = []
    create = dataclasses._create_fn

    def counted(name: str, *source: object, **namespaces: object) -> object:
        compiled.append(name)
        return create(name, *source, **namespaces)

    monkeypatch.setattr(dataclasses, "_create_fn", compiled_when_called(counted))

    @dataclasses.dataclass(frozen=True, slots=slots)
    class Point:
        x: int
        y: int = 0

    assert compiled == ["__init__"]
    one, equal, other = Point(1), Point(1), Point(2)
    assert one == equal != other
    assert hash(one) == hash(equal) != hash(other)
    assert repr(one).endswith("Point(x=1, y=0)")
    assert Point.__eq__.__name__ == "__eq__"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.x = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.x
    assert sorted(compiled) == sorted(("__init__", *SELDOM_CALLED))
