"""Generating one continuation per row of a batch: greedy, or sampled with a seed per row.

Prompts of different lengths are padded on the left, so that the last column is every row's next
token; the attention mask and explicit positions keep the padding without effect.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from planner.errors import UsageError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Continuation:
    """The new tokens, without the one that ended it; "stop" is an end token or a stop text."""

    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


class Step(Protocol):
    """One forward pass that remembers the earlier ones.

    `ids` and `positions` are [batch, sequence], `mask` [batch, past + sequence]; the result is the
    logits of the last column, [batch, vocabulary].
    """

    def __call__(self, ids: Integers, mask: Integers, positions: Integers) -> Floats: ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the likeliest token; otherwise row i draws with its own seed."""

    max_new_tokens: int
    temperature: float = 0.0
    seeds: Sequence[int] = ()


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Integers, Integers]:
    """Ids and attention mask, each [batch, longest prompt]."""
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def pad_right(sequences: Sequence[Sequence[int]], fill: int) -> tuple[Integers, Integers]:
    """Ids and attention mask, each [batch, longest sequence]."""
    ids = np.full((len(sequences), max(map(len, sequences))), fill, np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask


def positions_of(mask: Integers) -> Integers:
    """Each token's index among its row's real tokens; padding before the first gets 0."""
    positions: Integers = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return positions


def generate(
    step: Step,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    pad_id: int,
    end_ids: Sequence[int],
    stopped: Callable[[list[int]], bool],
    context_length: int | None = None,
) -> list[Continuation]:
    """Runs until every row has ended; `stopped` looks at a row's new tokens after each.

    A row also ends, for "length", where its prompt and new tokens fill the context.
    """
    ids, mask = pad_left(prompts, pad_id)
    positions = positions_of(mask)
    generators = [np.random.default_rng(seed) for seed in sampling.seeds]
    tokens: list[list[int]] = [[] for _ in prompts]
    stops = [False for _ in prompts]
    limits = [row_limit(len(prompt), sampling, context_length) for prompt in prompts]
    running = [True for _ in prompts]
    while True:
        logits = step(ids, mask, positions)
        chosen = choose(logits, sampling.temperature, generators)
        for row, token in enumerate(chosen.tolist()):
            if not running[row]:
                continue
            stops[row] = token in end_ids
            if not stops[row]:
                tokens[row].append(token)
                stops[row] = stopped(tokens[row])
            running[row] = not stops[row] and len(tokens[row]) < limits[row]
        if not any(running):
            break
        # An ended row runs along on padding, where it stands; nothing more of it is looked at.
        ids = np.where(running, chosen, pad_id)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        positions = positions[:, -1:] + np.array(running)[:, None]
    return [
        Continuation(tuple(row), "stop" if stop else "length")
        for row, stop in zip(tokens, stops, strict=True)
    ]


def check_sampling(sampling: Sampling, rows: int) -> None:
    if sampling.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {sampling.max_new_tokens}")
    if not 0 <= sampling.temperature < math.inf:
        raise UsageError(f"temperature must be at least 0 and finite, not {sampling.temperature}")
    if sampling.temperature and len(sampling.seeds) != rows:
        raise UsageError(f"{len(sampling.seeds)} seeds are given for {rows} rows")
    for seed in sampling.seeds:
        if seed < 0:
            raise UsageError(f"a seed must be at least 0, not {seed}")


def row_limit(prompt_length: int, sampling: Sampling, context_length: int | None) -> int:
    """How many new tokens a row may have."""
    if context_length is None:
        return sampling.max_new_tokens
    return min(sampling.max_new_tokens, context_length - prompt_length)


def choose(
    logits: Floats, temperature: float, generators: Sequence[np.random.Generator]
) -> Integers:
    """One token per row of logits [batch, vocabulary]."""
    chosen: Integers
    if temperature == 0:
        chosen = np.argmax(logits, axis=1)
        return chosen
    # Adding Gumbel noise to the scaled logits and taking the largest draws from their softmax.
    noise = np.stack([generator.gumbel(size=logits.shape[1]) for generator in generators])
    chosen = np.argmax(logits.astype(np.float64) / temperature + noise, axis=1)
    return chosen


def negative_log_likelihood(logits: Floats, labels: Integers) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[label] per row, in nats; logits [rows, classes], labels [rows]."""
    largest = logits.max(axis=1)
    # float32 holds exp() of what is at most 0 well; only the sum of many needs more digits.
    total = np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64)
    label = logits[np.arange(len(labels)), labels]
    loss: npt.NDArray[np.float64] = np.log(total) - (label.astype(np.float64) - largest)
    return loss


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Probabilities of one row of logits."""
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: npt.NDArray[np.float64] = exponents / exponents.sum()
    return probabilities
