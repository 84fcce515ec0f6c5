"""Perplexity of token sequences, as the exported graph gives it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from compiler.data.example import IGNORED
from compiler.generation import Floats, negative_log_likelihood, pad_right
from compiler.tenant_graph import TenantGraph
from planner.errors import UsageError

TokenSequence = tuple[Sequence[int], Sequence[int]]
"""Ids and, aligned with them, labels; -100 is a token that the loss does not count."""


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean over `tokens`, in nats."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return exp(self.loss)


def evaluate(
    graph: TenantGraph,
    sequences: Sequence[TokenSequence],
    rows: Sequence[str],
    *,
    pad_id: int,
    batch_size: int,
) -> Evaluation:
    """Over all counted tokens; raises UsageError when there is none."""
    # Neighbours of like length waste little on padding.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index][0]))
    losses: list[Floats] = [np.zeros(0)]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = pad_right([sequences[i][0] for i in chosen], pad_id)
        logits = graph.logits(ids, mask, [rows[i] for i in chosen])
        labels = [np.asarray(sequences[i][1], np.int64) for i in chosen]
        losses += map(token_losses, logits, labels)
    counted = np.concatenate(losses)
    if not counted.size:
        raise UsageError("the loss counts no token of the sequences")
    return Evaluation(float(counted.mean()), counted.size)


def token_losses(logits: Floats, labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """The loss of each counted token, predicted from those before it; logits [at least labels]."""
    counted = np.flatnonzero(labels[1:] != IGNORED)
    return negative_log_likelihood(logits[counted], labels[1:][counted])
