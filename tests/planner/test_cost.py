"""Costs against arithmetic written out here."""

import pytest

from planner import catalog
from planner.architecture import Architecture, architecture
from planner.candidates import adapted, select
from planner.cost.adapter import AdapterCost, TargetSet, adapter_cost, target_set
from planner.cost.memory import (
    BITS_PER_WEIGHT,
    Load,
    Step,
    serving_memory,
    training_memory,
    weights_bytes,
)
from planner.cost.trace import ShapeTensor, linear_cost
from planner.method import Method, Target, method, target_dimensions

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "tie_word_embeddings": True,
}
SHAPE = architecture(TINY)
ALL = ("all-linear",)


def linears_of(found: Method, targets: tuple[str, ...], shape: Architecture) -> TargetSet:
    return adapted(found, target_set(select(targets, shape)))


def cost_of(found: Method, rank: int | None, targets: tuple[str, ...] = ALL) -> AdapterCost:
    return adapter_cost(found, rank, linears_of(found, targets, SHAPE), SHAPE)


def step(name: str, **changes: object) -> Step:
    fields: dict[str, object] = {
        "method": method(name),
        "format": "fp32",
        "compute": "fp32",
        "optimizer": "adamw",
        "batch_size": 2,
        "sequence_length": 8,
        "checkpointing": "none",
        "accumulates": False,
        "causal": True,
        "labels": 2,
        "loss": "full",
    }
    return Step(**(fields | changes))  # type: ignore[arg-type]


def test_training_memory_by_hand() -> None:
    """LoRA r4 on every linear, fp32, 2 x 8 tokens.

    Widths: q 64x64, k and v 32x64, o 64x64, gate and up 128x64, down 64x128.
    """
    adapter = cost_of(method("lora"), 4)
    rank_sides = 4 * ((64 + 64) * 2 + (32 + 64) * 2 + (128 + 64) * 3)
    assert adapter.trainable_parameters == 2 * rank_sides
    memory = training_memory(SHAPE, adapter, step("lora"))
    assert memory.weights_bytes == 4 * SHAPE.parameters
    assert memory.adapters_bytes == memory.gradients_bytes == 4 * adapter.trainable_parameters
    assert memory.optimizer_bytes == 8 * adapter.trainable_parameters
    # A block keeps: 2 norm inputs (64), q k v and output (4 x 64), gate, its activation and up
    # (3 x 128); for the adapters the attention's and the MLP's input (64 each), the input of down
    # (128), and A x of rank 4 for seven linears.
    block = 2 * 64 + 4 * 64 + 3 * 128 + 64 + 64 + 128 + 7 * 4
    assert memory.activations_bytes == 2 * 8 * 2 * block * 4
    assert memory.logits_bytes == 2 * 8 * 256 * 12
    assert memory.workspace_bytes == 0
    parts = memory.parts().values()
    # Gradients come while activations go: the larger of the two counts.
    assert memory.peak_allocated_bytes == sum(parts) - memory.gradients_bytes


def test_a_chunked_loss_holds_one_chunk_of_logits() -> None:
    adapter = cost_of(method("lora"), 4)
    small = training_memory(SHAPE, adapter, step("lora", loss="chunked"))
    assert small.logits_bytes == 2 * 8 * 256 * 4
    long = step("lora", loss="chunked", sequence_length=2**20)
    assert training_memory(SHAPE, adapter, long).logits_bytes == 2**25 * 4


def test_block_checkpointing_keeps_inputs_and_one_block() -> None:
    adapter = cost_of(method("lora"), 4)
    full = training_memory(SHAPE, adapter, step("lora"))
    block = training_memory(SHAPE, adapter, step("lora", checkpointing="block"))
    assert block.activations_bytes == 2 * 8 * (2 * 64 * 4) + full.activations_bytes / 2


def test_nf4_takes_4_127_bits_a_weight() -> None:
    assert BITS_PER_WEIGHT["nf4"] == pytest.approx(4.127, abs=5e-4)
    linear = SHAPE.linear_parameters
    expected = linear * BITS_PER_WEIGHT["nf4"] / 8 + (SHAPE.parameters - linear) * 4
    assert weights_bytes(SHAPE, "nf4", 4) == expected


def test_published_peaks_are_near() -> None:
    """Dry run of LoRA r32 on q and v, Llama-3.2-3B, bf16, 4 x 768 tokens: 21.2 GiB."""
    shape = catalog.model("llama-3.2-3b").architecture
    targets = linears_of(method("lora"), ("attention.query", "attention.value"), shape)
    adapter = adapter_cost(method("lora"), 32, targets, shape)
    assert adapter.trainable_parameters == 9_175_040
    memory = training_memory(
        shape,
        adapter,
        step("lora", format="bf16", compute="bf16", batch_size=4, sequence_length=768),
    )
    assert memory.peak_allocated_bytes / 2**30 == pytest.approx(21.2, rel=0.10)


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [("lora", 32, 9_175_040), ("lora", 64, 18_350_080), ("dora", 32, 9_289_728)],
)
def test_trainable_counts_equal_published_ones(name: str, rank: int, expected: int) -> None:
    """Hugging Face PEFT's benchmark, Llama-3.2-3B, q and v."""
    shape = catalog.model("llama-3.2-3b").architecture
    targets = linears_of(method(name), ("attention.query", "attention.value"), shape)
    assert adapter_cost(method(name), rank, targets, shape).trainable_parameters == expected


def test_vera_and_ia3_counts_equal_published_ones() -> None:
    shape = catalog.model("llama-3.2-3b").architecture
    vera = linears_of(method("vera"), ("attention.query", "attention.value"), shape)
    assert adapter_cost(method("vera"), 256, vera, shape).trainable_parameters == 129_024
    ia3 = linears_of(method("ia3"), method("ia3").targets, shape)
    assert adapter_cost(method("ia3"), None, ia3, shape).trainable_parameters == 286_720


TARGET = Target("q", "attention.query", 48, 32)
WIDEST = {"max_out": 64, "max_in": 40}


@pytest.mark.parametrize(
    ("name", "rank", "multiplications", "saved", "row_floats"),
    [
        ("lora", 4, 4 * 80, 4, 4 * 80),
        # A and B are folded with the output scale; the scale of the base adds a vector.
        ("dora", 4, 4 * 80 + 48 + 48, 4 + 48 + 48, 4 * 80 + 48),
        ("pissa", 4, 2 * 4 * 80, 4, 2 * 4 * 80),
        # The pair is shared: only d (padded to 16) and b are the tenant's own.
        ("vera", 8, 8 * 80 + 8 + 48, 8 + 48, 16 + 48),
    ],
)
def test_linear_cost_by_hand(
    name: str, rank: int, multiplications: int, saved: int, row_floats: int
) -> None:
    cost = linear_cost(method(name), TARGET, target_dimensions(TARGET, rank) | WIDEST)
    assert (cost.multiplications, cost.saved_elements) == (multiplications, saved)
    assert cost.row_bytes == 4 * row_floats
    assert cost.saves_input == (name != "vera")


def test_shape_tensors_refuse_what_numpy_would() -> None:
    with pytest.raises(ValueError, match="cannot multiply"):
        ShapeTensor((2, 3)) @ ShapeTensor((2, 3))
    with pytest.raises(ValueError, match="cannot broadcast"):
        ShapeTensor((2, 3)) * ShapeTensor((4,))


LOAD = Load(
    sequences=3,
    context_length=16,
    prompt_tokens=8,
    causal=True,
    cache_element_bytes=4,
    other_bytes=4,
)


def test_serving_memory_by_hand() -> None:
    adapter = cost_of(method("lora"), 4)
    unmerged = serving_memory(SHAPE, adapter, "fp32", "unmerged", LOAD)
    assert unmerged.weights_bytes == 4 * SHAPE.parameters
    directory = 14 * 96
    assert adapter.row_bytes == 4 * adapter.trainable_parameters + directory
    assert unmerged.bank_bytes == 3 * adapter.row_bytes
    assert unmerged.cache_bytes == 3 * 16 * (2 * 2 * 2 * 16) * 4
    assert unmerged.workspace_bytes == 4 * 8 * (4 * 64 + 3 * 128 + 256)
    merged = serving_memory(SHAPE, adapter, "fp32", "merged", LOAD)
    assert (merged.weights_bytes, merged.bank_bytes) == (3 * 4 * SHAPE.parameters, 0)


def test_vera_tenants_share_their_pair() -> None:
    vera, lora = cost_of(method("vera"), 64), cost_of(method("lora"), 16)
    assert vera.shared_bytes == 4 * 64 * (128 + 128)
    assert vera.row_bytes < lora.row_bytes / 4
    assert vera.stored_bytes == 4 * vera.trainable_parameters
