"""The comparisons that formulas need, on numbers and on numpy arrays alike.

A search evaluates a formula on whole columns; one candidate evaluates it on numbers and loads no
numpy. Formulas are written, and typed, for numbers.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


def remembered(formula: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """Keeps what the formula found, as a search asks for the same with every adapter.

    Its last argument may be a column, for which nothing is kept.
    """
    kept: Any = lru_cache(maxsize=1024)(formula)

    @wraps(formula)
    def ask(*arguments: Arguments.args, **named: Arguments.kwargs) -> Found:
        found: Found = (formula if hasattr(arguments[-1], "shape") else kept)(*arguments, **named)
        return found

    return ask


def larger(left: float, right: float) -> float:
    over: Any = left >= right
    if over is True or over is False:
        # Two numbers, by far the most frequent.
        return left if over else right
    return where(over, left, right)


def smaller(left: float, right: float) -> float:
    return where(left <= right, left, right)


def where(condition: Any, then: float, otherwise: float) -> float:  # noqa: ANN401, bool or array
    if not hasattr(condition, "shape"):
        return then if condition else otherwise
    import numpy as np  # noqa: PLC0415, not needed for one candidate

    chosen: Any = np.where(condition, then, otherwise)
    return chosen  # type: ignore[no-any-return]
