"""What the process of one command leaves out: it answers in a fraction of a second and is gone.

    garbage      collecting it walks all that has just been imported
    schemas      of pydantic-core: their types and makers, loaded here when one is first asked for
    methods      of dataclasses, which are compiled here when one is first called, as few ever are

None of it changes an answer.
"""

import dataclasses
import gc
import importlib
import sys
import typing
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType

SELDOM_CALLED = ("__eq__", "__repr__", "__hash__", "__setattr__", "__delattr__")


def quick_start() -> None:
    """To be called before pydantic_core is imported."""
    gc.disable()
    sys.modules[_Schemas.NAME] = _Schemas(_Schemas.NAME)
    # The generator of their source; later Pythons than 3.12 compile a class at once.
    create = vars(dataclasses).get("_create_fn")
    if create is not None:
        vars(dataclasses)["_create_fn"] = compiled_when_called(create)


class _Schemas(ModuleType):
    """Stands for pydantic_core.core_schema until more is asked of it than what is passed on."""

    NAME = "pydantic_core.core_schema"
    CoreConfig = CoreSchema = CoreSchemaType = ErrorType = dict

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # asked for by the import itself
            raise AttributeError(name)
        if sys.modules.get(self.NAME) is self:
            del sys.modules[self.NAME]
        return getattr(importlib.import_module(self.NAME), name)


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
