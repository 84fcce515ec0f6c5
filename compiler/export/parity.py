"""Parity: the exported graph in ONNX Runtime against the torch model, on real inputs.

A comparison is made per tenant, the base model among them, over the unmasked positions. Exact
graphs must agree in every logit; fast ones, which round activations, in what they predict.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.bank import AdapterBank
from compiler.engine import Engine, Feed
from compiler.generation import negative_log_likelihood, positions_of
from compiler.manifest import BASE, KvCache
from planner.errors import IncompatibleError

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Logits = Callable[[Integers, Integers], Floats]
"""(input_ids, attention_mask), both [batch, sequence] -> [batch, sequence, vocabulary] or
[batch, labels]."""


@dataclass(frozen=True)
class Batch:
    """Right-padded inputs, [batch, sequence]; the mask is 0 on padding."""

    input_ids: Integers
    attention_mask: Integers


@dataclass(frozen=True)
class Agreement:
    """One output for one tenant; errors are absolute, `compared` counts rows of logits.

    The perplexities are those of the inputs themselves; a classifier has none.
    """

    tenant: str
    output: str
    compared: int
    max_error: float
    mean_error: float
    largest_logit: float
    top1_agreement: float
    perplexity: float | None = None
    reference_perplexity: float | None = None


@dataclass(frozen=True)
class Tolerance:
    """What a build is held to; None is not held."""

    max_error: float | None = None
    top1_agreement: float | None = None
    perplexity_ratio: float | None = None


EXACT = Tolerance(max_error=1e-3)
FAST = Tolerance(top1_agreement=0.95, perplexity_ratio=1.02)
ENOUGH_TOKENS = 2000
"""The sample for which the tolerance of a ratio of perplexities is stated."""


def compare(
    tenant: str, exported: Logits, reference: Logits, batches: Sequence[Batch]
) -> Agreement:
    """Both over all batches; raises IncompatibleError when one of them is not finite."""
    # One batch's logits at a time: of a large vocabulary they are the largest thing in memory.
    counts = [_count(tenant, exported, reference, batch) for batch in batches]
    rows, losses = sum(c.rows for c in counts), sum(c.losses for c in counts)
    return Agreement(
        tenant=tenant,
        output="logits",
        compared=rows,
        max_error=max(c.max_error for c in counts),
        mean_error=sum(c.error_sum for c in counts) / sum(c.numbers for c in counts),
        largest_logit=max(c.largest_logit for c in counts),
        top1_agreement=sum(c.same_top1 for c in counts) / rows,
        perplexity=exp(sum(c.loss_sum for c in counts) / losses) if losses else None,
        reference_perplexity=(
            exp(sum(c.reference_loss_sum for c in counts) / losses) if losses else None
        ),
    )


def check(agreement: Agreement, tolerance: Tolerance) -> None:
    """Raises IncompatibleError, naming the number and the limit, outside the tolerance."""
    for measure, number, limit in _excesses(agreement, tolerance):
        raise IncompatibleError(
            f"the exported graph disagrees with the model for '{agreement.tenant}': {measure} is "
            f"{number:.6g}, the limit {limit:.6g}",
            hint="nothing was published; is the op library of this version of paretune?",
        )


def write_report(
    agreements: Sequence[Agreement], path: Path, drift: Mapping[str, float] | None = None
) -> None:
    """parity.json; `drift` is the relative error of each weight that was quantised again."""
    report = {
        "schema_version": 1,
        "agreements": [asdict(agreement) for agreement in agreements],
        "weight_drift": dict(drift or {}),
    }
    path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def exported_logits(
    engine: Engine,
    *,
    kv: KvCache | None = None,
    bank: AdapterBank | None = None,
    tenant: str = BASE,
) -> Logits:
    """The graph's logits of every position for one tenant of the bank, with an empty cache."""

    def run(ids: Integers, mask: Integers) -> Floats:
        feeds: dict[str, Feed] = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions_of(mask),
            "keep": np.array([ids.shape[1]]),
        }
        if kv is not None:
            empty = np.zeros((len(ids), kv.kv_heads, 0, kv.head_dim), np.float32)
            feeds |= dict.fromkeys((n for n in engine.inputs if n.startswith("past.")), empty)
        if bank is not None:
            slot = 0 if tenant == BASE else bank.slot(tenant)
            feeds |= {"bank": bank.array, "slot": np.full(len(ids), slot)}
        present = {name: feed for name, feed in feeds.items() if name in engine.inputs}
        logits: Floats = engine.run(present, ("logits",))["logits"].numpy()
        return logits

    return run


@dataclass(frozen=True)
class _Counts:
    """What one batch adds to an agreement."""

    rows: int
    numbers: int
    max_error: float
    error_sum: float
    largest_logit: float
    same_top1: int
    losses: int = 0
    loss_sum: float = 0.0
    reference_loss_sum: float = 0.0


def _count(tenant: str, exported: Logits, reference: Logits, batch: Batch) -> _Counts:
    ids, mask = batch.input_ids, batch.attention_mask
    found, wanted = exported(ids, mask), reference(ids, mask)
    if found.shape != wanted.shape:
        raise IncompatibleError(f"logits are {found.shape} exported, but {wanted.shape} in torch")
    losses = _losses(found, wanted, ids, mask) if found.ndim == 3 else {}
    if found.ndim == 3:
        found, wanted = found[mask.astype(bool)], wanted[mask.astype(bool)]
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        raise IncompatibleError(f"the logits for '{tenant}' hold NaN or infinity")
    errors = np.abs(found - wanted)
    return _Counts(
        rows=len(found),
        numbers=errors.size,
        max_error=float(errors.max()),
        error_sum=float(errors.sum(dtype=np.float64)),
        largest_logit=float(np.abs(wanted).max()),
        same_top1=int((found.argmax(-1) == wanted.argmax(-1)).sum()),
        **losses,
    )


def _losses(found: Floats, wanted: Floats, ids: Integers, mask: Integers) -> dict[str, Any]:
    """The loss of every token after the first of its row."""
    follows = mask[:, 1:].astype(bool)
    tokens = ids[:, 1:][follows]
    sums = [
        float(negative_log_likelihood(logits[:, :-1][follows], tokens).sum())
        for logits in (found, wanted)
    ]
    return {"losses": tokens.size, "loss_sum": sums[0], "reference_loss_sum": sums[1]}


def _excesses(agreement: Agreement, tolerance: Tolerance) -> Iterator[tuple[str, float, float]]:
    if tolerance.max_error is not None and agreement.max_error > tolerance.max_error:
        yield "the largest error", agreement.max_error, tolerance.max_error
    if tolerance.top1_agreement is not None:
        # Two standard errors of a sample this size: a small sample may miss by chance.
        share = tolerance.top1_agreement
        limit = share - 2 * sqrt(share * (1 - share) / agreement.compared)
        if agreement.top1_agreement < limit:
            yield "the agreement of the first choice", agreement.top1_agreement, limit
    if tolerance.perplexity_ratio is None or agreement.perplexity is None:
        return
    ratio = agreement.perplexity / (agreement.reference_perplexity or agreement.perplexity)
    # The mean loss of fewer tokens spreads by the root of their number.
    spread = max(1.0, sqrt(ENOUGH_TOKENS / agreement.compared))
    limit = 1 + (tolerance.perplexity_ratio - 1) * spread
    if max(ratio, 1 / ratio) > limit:
        yield "the ratio of perplexities", max(ratio, 1 / ratio), limit
