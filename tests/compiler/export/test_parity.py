"""Parity: the numbers by hand, the limits, and the real graph against the real model."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from compiler.export.parity import (
    EXACT,
    FAST,
    Agreement,
    Batch,
    check,
    compare,
    exported_logits,
    write_report,
)
from compiler.export.unmerged import write_unmerged
from compiler.manifest import KvCache
from planner.errors import IncompatibleError

IDS = np.array([[0, 1, 1], [1, 0, 0]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])


def constant(logits: list[list[list[float]]]):
    return lambda ids, mask: np.array(logits, np.float32)


def test_numbers_by_hand() -> None:
    """Five real positions of two rows; the sixth, padding, differs and does not count."""
    reference = [[[0, 0], [0, 0], [2, 0]], [[0, 0], [0, 1], [5, 5]]]
    found = [[[0, 0], [0, 0], [1, 0]], [[0, 0], [1, 0], [9, 9]]]
    agreement = compare("acme", constant(found), constant(reference), [Batch(IDS, MASK)])
    assert agreement.compared == 5
    assert agreement.max_error == 1.0
    assert agreement.mean_error == pytest.approx(3 / 10)
    assert agreement.largest_logit == 2.0
    assert agreement.top1_agreement == pytest.approx(4 / 5)
    # Each of the three tokens that follow another was predicted from two equal logits.
    assert agreement.perplexity == pytest.approx(2.0)
    assert agreement.reference_perplexity == pytest.approx(2.0)


def agreement(**numbers: float) -> Agreement:
    same = {"max_error": 0.0, "mean_error": 0.0, "largest_logit": 1.0, "top1_agreement": 1.0}
    return Agreement("acme", "logits", **{"compared": 10_000, **same, **numbers})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "tolerance", "message"),
    [
        (agreement(max_error=2e-3), EXACT, "the largest error is 0.002, the limit 0.001"),
        (agreement(top1_agreement=0.9), FAST, "the agreement of the first choice is 0.9, the"),
        (
            agreement(perplexity=31.0, reference_perplexity=30.0),
            FAST,
            "the ratio of perplexities is 1.03333, the limit 1.02",
        ),
    ],
)
def test_outside_the_tolerance(found: Agreement, tolerance, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        check(found, tolerance)


@pytest.mark.parametrize(
    ("found", "tolerance"),
    [
        (agreement(max_error=9e-4), EXACT),
        (agreement(max_error=1.0, top1_agreement=0.96), FAST),
        (agreement(top1_agreement=0.9, compared=20), FAST),
        (agreement(perplexity=31.0, reference_perplexity=30.0, compared=500), FAST),
    ],
)
def test_within_the_tolerance(found: Agreement, tolerance) -> None:
    check(found, tolerance)


def test_not_a_number() -> None:
    nothing = constant([[[np.nan, 0]] * 3] * 2)
    with pytest.raises(IncompatibleError, match="hold NaN or infinity"):
        compare("acme", nothing, nothing, [Batch(IDS, MASK)])


def test_graph_against_model(llama, kit: ModuleType, prompt, tmp_path: Path) -> None:
    write_unmerged(
        llama.skeleton, llama.model.state_dict(), llama.sites, tmp_path, precision="exact"
    )
    mask = np.ones_like(prompt)
    mask[1, 7:] = 0

    def reference(ids, mask):
        return llama.model(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()

    exported = exported_logits(
        kit.load(tmp_path),
        kv=KvCache(layers=kit.LAYERS, kv_heads=kit.KV_HEADS, head_dim=kit.HEAD_DIM),
        bank=kit.bank_of(llama, {}),
    )
    found = compare("base", exported, reference, [Batch(prompt, mask), Batch(prompt, mask)])
    assert found.compared == 2 * mask.sum()
    check(found, EXACT)
    write_report([found], tmp_path / "parity.json", {"w": 0.1})
    report = json.loads((tmp_path / "parity.json").read_text())
    assert report["agreements"][0]["max_error"] == found.max_error
    assert report["weight_drift"] == {"w": 0.1}
