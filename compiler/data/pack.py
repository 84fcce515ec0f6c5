"""Several short examples in one row, so that no compute goes to padding."""

from collections.abc import Sequence

import numpy as np

from compiler.data.example import IGNORED, Example


def pack(examples: Sequence[Example], sequence_length: int, *, seed: int) -> tuple[Example, ...]:
    """Whole examples laid end to end in rows of at most `sequence_length`, first fit by size.

    As usual in packing, nothing masks attention between the examples of a row: a later one sees
    those before it. Its own first token is not trained, having no context of its own. The rows are
    the same in every epoch.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    by_size = sorted(order, key=lambda i: -len(examples[i].input_ids))
    rows: list[list[int]] = []
    room: list[int] = []
    for i in by_size:
        size = len(examples[i].input_ids)
        row = next((r for r, free in enumerate(room) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(sequence_length)
        rows[row].append(int(i))
        room[row] -= size
    return tuple(_joined([examples[i] for i in row], number) for number, row in enumerate(rows))


def _joined(examples: Sequence[Example], group: int) -> Example:
    labels = [example.labels.copy() for example in examples]
    for piece in labels[1:]:
        piece[0] = IGNORED
    ids = np.concatenate([example.input_ids for example in examples])
    return Example(ids, np.concatenate(labels), group)
