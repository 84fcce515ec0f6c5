"""The comparisons that formulas need, on numbers and on numpy arrays alike.

A search evaluates a formula on whole columns; one candidate evaluates it on numbers and loads no
numpy. Formulas are written, and typed, for numbers.
"""

from typing import Any


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
