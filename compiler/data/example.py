"""One training sequence as ids."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Label of a token that adds nothing to the loss, as in PyTorch's cross entropy."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Example:
    """`labels` is aligned with `input_ids` [tokens] (the loss shifts by one), or a class index [].

    Examples of one `group` share a prompt.
    """

    input_ids: Ids
    labels: Ids
    group: int
