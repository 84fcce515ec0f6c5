"""Examples → batches of rows of about the same length, right-padded."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.data.example import IGNORED, Example, Ids

BUCKET_BATCHES = 50
"""Batches sorted by length together: enough to save padding, few enough to stay shuffled."""


@dataclass(frozen=True, eq=False)
class Batch:
    """All [batch, tokens], but for `labels` of classes: indices [batch]."""

    input_ids: Ids
    labels: Ids
    attention_mask: Ids


def batch_count(examples: int, batch_size: int) -> int:
    """Batches of one epoch; the last of them may be smaller."""
    return math.ceil(examples / batch_size)


def batches(
    examples: Sequence[Example],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    pad_id: int,
    multiple: int = 32,
) -> Iterator[Batch]:
    """One epoch, in an order that `seed` and `epoch` decide; widths are multiples of `multiple`."""
    for rows in _order(examples, batch_size, seed=seed, epoch=epoch):
        yield _batch([examples[i] for i in rows], pad_id, multiple)


def _order(
    examples: Sequence[Example], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Indices of each batch: shuffle, sort within buckets by length, shuffle the batches."""
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(examples)).tolist()
    size = batch_size * BUCKET_BATCHES
    grouped: list[list[int]] = []
    for start in range(0, len(shuffled), size):
        bucket = sorted(shuffled[start : start + size], key=lambda i: len(examples[i].input_ids))
        grouped += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [grouped[i] for i in generator.permutation(len(grouped))]


def _batch(rows: Sequence[Example], pad_id: int, multiple: int) -> Batch:
    longest = max(len(row.input_ids) for row in rows)
    width = math.ceil(longest / multiple) * multiple
    ids = np.stack([_padded(row.input_ids, width, pad_id) for row in rows])
    mask = np.stack([_padded(np.ones_like(row.input_ids), width, 0) for row in rows])
    if rows[0].labels.ndim == 0:
        return Batch(ids, np.stack([row.labels for row in rows]), mask)
    return Batch(ids, np.stack([_padded(row.labels, width, IGNORED) for row in rows]), mask)


def _padded(values: Ids, width: int, fill: int) -> Ids:
    return np.pad(values, (0, width - len(values)), constant_values=fill)
