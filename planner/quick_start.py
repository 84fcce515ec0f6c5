"""What the process of one command leaves out: it answers in a fraction of a second and is gone.

    garbage      collecting it walks all that has just been imported
    plugins      of pydantic: looking for them reads the metadata of every installed package
    key types    of pydantic's schemas, of which each annotation is compiled and none is read
    methods      of dataclasses, which are compiled here when one is first called, as few ever are

None of it changes an answer. The last two are an eighth of the instructions of `planner recommend`.
"""

import dataclasses
import gc
import sys
import typing
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType

SELDOM_CALLED = ("__eq__", "__repr__", "__hash__", "__setattr__", "__delattr__")


def quick_start(*, uses_pydantic: bool) -> None:
    """To be called before pydantic is imported, which it is here where the process uses it."""
    gc.disable()
    sys.modules["pydantic.plugin._loader"] = _without_plugins()
    # The generator of their source; later Pythons than 3.12 compile a class at once.
    create = vars(dataclasses).get("_create_fn")
    if create is not None:
        vars(dataclasses)["_create_fn"] = compiled_when_called(create)
    if uses_pydantic:
        _import_schemas()


def _without_plugins() -> ModuleType:
    """Stands for pydantic's module of that name, whose one function finds none."""
    loader = ModuleType("pydantic.plugin._loader")
    loader.get_plugins = lambda: ()  # type: ignore[attr-defined]
    return loader


def compiled_when_called(create: Callable[..., FunctionType]) -> Callable[..., FunctionType]:
    """`create`, which compiles a method of that name, put off to the method's first call."""

    def created(name: str, *source: object, **namespaces: object) -> FunctionType:
        if name not in SELDOM_CALLED:
            return create(name, *source, **namespaces)
        compiled = cache(lambda: create(name, *source, **namespaces))

        def method(*values: object) -> object:
            return compiled()(*values)

        method.__name__ = name
        return typing.cast(FunctionType, method)

    return created


class _Keys(dict[str, object]):
    """Stands for TypedDict: a class of the same name that keeps its annotations as they are."""

    def __init_subclass__(cls, *, total: bool = True) -> None:
        """Both are of no use at run time."""


def _import_schemas() -> None:
    import typing_extensions  # noqa: PLC0415, nor does `--help` need it

    homes = (typing, typing_extensions)
    found = [home.TypedDict for home in homes]
    try:
        for home in homes:
            vars(home)["TypedDict"] = _Keys
        import pydantic_core  # noqa: F401, PLC0415
    finally:
        for home, typed_dict in zip(homes, found, strict=True):
            vars(home)["TypedDict"] = typed_dict
