"""Lowering over every method: the bank's formula, the update and the merged weight agree."""

from dataclasses import replace

import numpy as np
import pytest

from compiler.adapter import Adapter, target_tensors, uniform
from compiler.lower import lower, lower_update
from compiler.row import Site as BankSite
from compiler.row import pack_row, unpack_row
from planner import update
from planner.errors import IncompatibleError
from planner.method import Site, Target, buildable, method, model_dimensions, target_dimensions
from planner.update import LowRank

ATTENTION = Target("model.q_proj", "attention.key", 24, 40)
DOWN = Target("model.down_proj", "mlp.down", 40, 72)
TARGETS = (ATTENTION, DOWN)
UNMERGED = [name for name, record in buildable().items() if "unmerged" in record.serves]

# Float32 sums of up to 72 products of unit normals: about 72 * 6e-8 * 8 = 3e-5 of absolute error
# would need every rounding to go one way; 1e-5 of the greatest output is three times what occurs.
TOLERANCE = 1e-5


def base(seed, *, bias):
    random = np.random.default_rng(seed)
    weights = {
        t.name: random.normal(size=(t.out_features, t.in_features)).astype(np.float32)
        for t in TARGETS
    }
    biases = {t.name: random.normal(size=t.out_features).astype(np.float32) for t in TARGETS}
    return weights, (biases if bias else {})


def random_adapter(name, seed, ranks):
    """An adapter of the method with every tensor random, so that no part is a no-op."""
    record = method(name)
    random = np.random.default_rng(seed)
    widest = model_dimensions(TARGETS)
    tensors = {}
    for target in TARGETS:
        for spec in record.tensors_for(target.role):
            shape = spec.resolve(widest | target_dimensions(target, ranks[target.name]))
            tensors[f"{target.name}.{spec.name}"] = random.normal(size=shape)
    for spec in record.model_tensors():
        tensors[spec.name] = random.normal(
            size=spec.resolve(widest | {"rank": max(ranks.values())})
        )
    alpha = None if record.default_alpha is None else 5.0
    adapter = uniform(
        method=name,
        rank=max(ranks.values()) if record.ranks else None,
        alpha=alpha,
        targets=TARGETS,
        tensors={key: value.astype(np.float32) for key, value in tensors.items()},
        base_digest="0" * 64,
    )
    scalings = {
        key: record.scaling(rank, 5.0) if record.scaling else 1.0 for key, rank in ranks.items()
    }
    return replace(adapter, ranks=ranks if record.ranks else {}, scalings=scalings)


def row_formula(parts, weight, bias, x):
    """The op's definition, part by part."""
    inputs = x if parts.input_scale is None else x * parts.input_scale
    y = inputs @ weight.T
    if parts.output_scale is not None:
        y = y * parts.output_scale
    if parts.a is not None:
        latent = x @ parts.a.T
        if parts.latent_scale is not None:
            latent = latent * parts.latent_scale
        pair = latent @ parts.b.T
        y = y + (pair if parts.pair_scale is None else pair * parts.pair_scale)
    if parts.output_shift is not None:
        y = y + parts.output_shift
    return y if bias is None else y + bias


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ranks", [(6, 6), (1, 6)], ids=["one rank", "mixed ranks"])
@pytest.mark.parametrize("name", UNMERGED)
def test_row_update_and_merged_weight_agree(name, ranks, bias):
    if ranks[0] != ranks[1] and (not method(name).ranks or method(name).model_tensors()):
        ranks = (6, 6)  # a method without a rank of its own per target has only the one case
    adapter = random_adapter(name, 3, dict(zip((ATTENTION.name, DOWN.name), ranks, strict=True)))
    weights, biases = base(4, bias=bias)
    lowered = lower(adapter, weights.__getitem__, biases.get)
    sites = [BankSite(t.name, t.out_features, t.in_features) for t in TARGETS]
    stored = unpack_row(sites, pack_row(sites, lowered))
    for target in TARGETS:
        x = np.random.default_rng(5).normal(size=(7, target.in_features)).astype(np.float32)
        weight, b = weights[target.name], biases.get(target.name)
        site = Site(target, weight, b, adapter.scalings[target.name])
        parts = method(name).update(target_tensors(adapter, target), site)
        applied = update.apply(parts, x, lambda x, w=weight: x @ w.T, lambda x, w: x @ w.T)
        folded, shift = update.fold(parts, weight)
        merged = x @ folded.T + (0 if shift is None else shift)
        plain = 0 if b is None else b
        assert_close(row_formula(lowered[target.name], weight, b, x), applied + plain)
        assert_close(row_formula(stored[target.name], weight, b, x), applied + plain)
        assert_close(merged + plain, applied + plain)


@pytest.mark.parametrize("name", UNMERGED)
def test_weights_are_read_only_where_the_update_needs_them(name):
    adapter = random_adapter(name, 3, {ATTENTION.name: 2, DOWN.name: 2})
    weights, biases = base(4, bias=True)
    read = []

    def weight(site):
        read.append(site)
        return weights[site]

    lower(adapter, weight, biases.get)
    assert bool(read) == (method(name).needs_weight == "every_step")


def test_pissa_lowers_to_twice_the_rank():
    adapter = random_adapter("pissa", 3, {ATTENTION.name: 2, DOWN.name: 3})
    lowered = lower(adapter, lambda _: None, lambda _: None)
    assert [lowered[t.name].rank for t in TARGETS] == [4, 6]


@pytest.mark.parametrize("pairs", [1, 2])
def test_scales_of_pairs_that_no_one_shares_go_into_b(pairs):
    random = np.random.default_rng(8)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    parts = tuple(LowRank(draw(3, 40), draw(24, 3), draw(3), draw(24)) for _ in range(pairs))
    lowered = lower_update(parts)
    x, weight = draw(7, 40), draw(24, 40)
    applied = update.apply(parts, x, lambda x: x @ weight.T, lambda x, w: x @ w.T)
    assert (lowered.rank, lowered.latent_scale, lowered.pair_scale) == (3 * pairs, None, None)
    assert_close(row_formula(lowered, weight, None, x), applied)


def test_vera_keeps_one_basis_for_all_sites_and_tenants():
    weights, _ = base(4, bias=False)
    one, other = (random_adapter("vera", 3, {ATTENTION.name: 6, DOWN.name: 6}) for _ in "ab")
    lowered = [lower(adapter, weights.__getitem__, lambda _: None) for adapter in (one, other)]
    keys = {(site.shared_a, site.shared_b) for each in lowered for site in each.values()}
    assert len(keys) == 1
    sites = [BankSite(t.name, t.out_features, t.in_features) for t in TARGETS]
    row = pack_row(sites, lowered[0])
    assert sorted(block.shape for block in row.shared.values()) == [(6, 40), (6, 72)]
    # Directory, lambda_d and lambda_b of each site, in whole cache lines.
    assert row.data.size == 192 + 2 * 64 + 128 + 192


def test_full_fine_tuning_is_refused():
    adapter = Adapter(
        method="full",
        rank=None,
        alpha=None,
        targets=TARGETS,
        ranks={},
        scalings={t.name: 1.0 for t in TARGETS},
        tensors={},
        base_digest="0" * 64,
    )
    with pytest.raises(IncompatibleError, match="full fine-tuning cannot be served unmerged"):
        lower(adapter, lambda _: None, lambda _: None)


def test_a_seeded_tensor_that_was_left_out_is_named():
    adapter = random_adapter("vera", 3, {ATTENTION.name: 6, DOWN.name: 6})
    tensors = {name: t for name, t in adapter.tensors.items() if name != "vera_B"}
    with pytest.raises(IncompatibleError, match="leaves out vera_B, to be drawn from seed 0"):
        lower(replace(adapter, tensors=tensors), lambda _: None, lambda _: None)


def classification(labels):
    random = np.random.default_rng(6)
    head = {
        "classifier.weight": random.normal(size=(labels, 40)).astype(np.float32),
        "classifier.bias": random.normal(size=labels).astype(np.float32),
    }
    adapter = random_adapter("lora", 3, {ATTENTION.name: 2, DOWN.name: 2})
    names = tuple(f"label {i}" for i in range(labels))
    return replace(adapter, tensors={**adapter.tensors, **head}, labels=names)


def test_a_classifier_becomes_a_pair_on_a_head_of_zeros():
    adapter = classification(3)
    zeros = np.zeros((5, 40), np.float32)
    head = lower(adapter, lambda _: zeros, lambda _: None)["classifier"]
    x = np.random.default_rng(7).normal(size=(4, 40)).astype(np.float32)
    logits = row_formula(head, zeros, None, x)
    expected = x @ adapter.tensors["classifier.weight"].T + adapter.tensors["classifier.bias"]
    assert_close(logits[:, :3], expected)
    assert not logits[:, 3:].any()


def test_more_labels_than_the_head_has_room_for_are_refused():
    with pytest.raises(IncompatibleError, match="6 labels, but the artifact's head has room for 5"):
        lower(classification(6), lambda _: np.zeros((5, 40), np.float32), lambda _: None)
