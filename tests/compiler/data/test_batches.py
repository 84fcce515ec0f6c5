from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.data import IGNORED, Example, batch_count, batches, pack, split
from planner.errors import UsageError


def examples_of(lengths: Sequence[int], groups: Sequence[int] | None = None) -> list[Example]:
    """Example i is made of the id i + 1."""
    owners = groups or range(len(lengths))
    return [
        Example(np.full(n, i + 1, np.int64), np.full(n, i + 1, np.int64), owner)
        for i, (n, owner) in enumerate(zip(lengths, owners, strict=True))
    ]


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda g: len(set(g)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_split_keeps_prompts_apart_and_both_sides_filled(
    groups: list[int], fraction: float, seed: int
) -> None:
    examples = examples_of([1] * len(groups), groups)
    training, validation = split(examples, fraction, seed)
    assert training
    assert validation
    assert len(training) + len(validation) == len(examples)
    assert not {e.group for e in training} & {e.group for e in validation}
    assert (training, validation) == split(examples, fraction, seed)


def test_split_of_one_prompt_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="single prompt"):
        split(examples_of([1, 1], [0, 0]), 0.5, seed=0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=120),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_batches_hold_every_example_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    examples = examples_of(lengths)
    made = list(batches(examples, batch_size, seed=5, epoch=epoch, pad_id=0, multiple=8))
    assert len(made) == batch_count(len(lengths), batch_size)
    rows = [row for batch in made for row in batch.input_ids]
    assert sorted(int(row[0]) for row in rows) == list(range(1, len(lengths) + 1))
    for batch in made:
        assert batch.input_ids.shape[1] % 8 == 0
        assert np.array_equal(batch.attention_mask == 1, batch.input_ids != 0)
        assert np.array_equal(batch.labels == IGNORED, batch.input_ids == 0)
        assert {a.dtype for a in vars(batch).values()} == {np.dtype(np.int64)}


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    examples = examples_of(list(range(1, 41)))

    def order(seed: int, epoch: int) -> list[int]:
        made = batches(examples, 4, seed=seed, epoch=epoch, pad_id=0)
        return [int(row[0]) for batch in made for row in batch.input_ids]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_bucketing_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 400).tolist()
    made = list(batches(examples_of(lengths), 8, seed=0, epoch=0, pad_id=0, multiple=8))
    width = sum(batch.input_ids.size for batch in made)
    # Unsorted rows of 8 would pad to about 200 × 8/9, twice the mean; sorted ones to near the mean.
    assert width < 1.1 * sum(lengths)


def test_classes_batch_to_one_index_per_row() -> None:
    examples = [Example(np.ones(3, np.int64), np.array(i, np.int64), i) for i in range(2)]
    (batch,) = batches(examples, 2, seed=0, epoch=0, pad_id=0, multiple=4)
    assert sorted(batch.labels.tolist()) == [0, 1]
    assert batch.input_ids.shape == (2, 4)


@given(st.lists(st.integers(2, 16), min_size=1, max_size=60))
def test_packing_keeps_examples_whole_and_untrained_at_their_start(lengths: list[int]) -> None:
    examples = examples_of(lengths)
    rows = pack(examples, 16, seed=0)
    found = np.concatenate([row.input_ids for row in rows])
    assert sorted(found.tolist()) == sorted(
        np.concatenate([e.input_ids for e in examples]).tolist()
    )
    assert max(len(row.input_ids) for row in rows) <= 16
    for row in rows:
        starts = np.flatnonzero(np.diff(row.input_ids)) + 1
        assert np.array_equal(np.flatnonzero(row.labels == IGNORED), starts)
