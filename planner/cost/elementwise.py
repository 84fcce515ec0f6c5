"""The comparisons that formulas need, on numbers and on numpy arrays alike.

A search evaluates a formula on whole columns; one candidate evaluates it on numbers and loads no
numpy.
"""

from typing import Any

Number = Any
"""A number, or a numpy array of numbers."""


def larger(left: Number, right: Number) -> Number:
    return where(left >= right, left, right)


def smaller(left: Number, right: Number) -> Number:
    return where(left <= right, left, right)


def where(condition: Number, then: Number, otherwise: Number) -> Number:
    if not hasattr(condition, "shape"):
        return then if condition else otherwise
    import numpy as np  # noqa: PLC0415, not needed for one candidate

    return np.where(condition, then, otherwise)
