"""Training memory against arithmetic written out here, published figures and itself."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner import catalog
from planner.adapters import adapted, select
from planner.architecture import Architecture, architecture
from planner.cost.adapter import AdapterCost, adapter_cost, target_set
from planner.cost.framework import FRAMEWORKS, LITGPT_2023, PARETUNE, PEFT
from planner.cost.memory import (
    BITS_PER_WEIGHT,
    Step,
    TrainingMemory,
    training_memory,
    weights_bytes,
)
from planner.cost.reserved import reserved
from planner.method import method, methods

ROOT = Path(__file__).resolve().parents[2]
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
STEP = Step(
    trains_base=False,
    format="fp32",
    compute="fp32",
    optimizer="adamw",
    batch_size=2,
    sequence_length=8,
    checkpointing="none",
    accumulates=False,
    causal=True,
    labels=0,
)
LLAMA = catalog.model("llama-3.2-3b").architecture
BF16 = STEP._replace(format="bf16", compute="bf16", batch_size=4, sequence_length=768)


def cost_of(
    name: str, rank: int | None, shape: Architecture, targets: tuple[str, ...] = ("all-linear",)
) -> AdapterCost:
    found = method(name)
    return adapter_cost(found, rank, adapted(found, target_set(select(targets, shape))), shape)


LORA = cost_of("lora", 4, SHAPE)
QV = cost_of("lora", 32, LLAMA, ("attention.query", "attention.value"))


def memory_of(**changes: object) -> TrainingMemory:
    return training_memory(SHAPE, LORA, STEP._replace(**changes))  # type: ignore[arg-type]


def test_by_hand() -> None:
    """LoRA r4 on every linear, fp32, 2 x 8 tokens.

    Widths: q 64x64, k and v 32x64, o 64x64, gate and up 128x64, down 64x128.
    """
    memory = memory_of()
    rank_sides = 4 * ((64 + 64) * 2 + (32 + 64) * 2 + (128 + 64) * 3)
    assert LORA.trainable_parameters == 2 * rank_sides
    assert memory.weights_bytes == 4 * SHAPE.parameters
    assert memory.adapters_bytes == memory.gradients_bytes == 4 * LORA.trainable_parameters
    assert memory.optimizer_bytes == 8 * LORA.trainable_parameters
    # A block keeps a norm's input (64), q, k and v repeated to 4 heads, the output (4 x 64) and a
    # sum for every head (4), the gate, its activation and up (3 x 128); for the adapters the
    # attention's and the MLP's input (64 each), the input of down (128), and A x of rank 4 for
    # seven linears. The first norm's input needs no gradient; of the last, 64 and its output.
    block = 2 * 64 + 4 * 64 + 4 + 3 * 128 + 64 + 64 + 128 + 7 * 4
    assert memory.activations_bytes == 16 * 4 * (2 * block - 64 + 2 * 64)
    # 2 x 7 labelled tokens, in one chunk: their logits, their rows and the rows' gradients.
    assert memory.logits_bytes == 14 * 256 * 4 + 2 * 14 * 64 * 4
    parts = memory.parts()
    del parts["gradients_bytes"], parts["workspace_bytes"]
    assert memory.peak_allocated_bytes == sum(parts.values())
    accumulating = memory_of(accumulates=True)
    grown = accumulating.peak_allocated_bytes - memory.peak_allocated_bytes
    assert grown == memory.gradients_bytes


def test_a_chunked_loss_holds_one_chunk_of_logits() -> None:
    long = memory_of(sequence_length=2**20 + 1, batch_size=1)
    rows = 2 * 2**20 * 64 * 4
    assert long.logits_bytes == 2**25 * 4 + rows
    full = memory_of(sequence_length=2**20, batch_size=1, loss="full", framework=PARETUNE)
    assert full.logits_bytes == 2**28 * 12


def test_block_checkpointing_keeps_a_residual_of_each_block_and_one_block() -> None:
    whole, block = memory_of(), memory_of(checkpointing="block")
    outside = 16 * 4 * 2 * 64
    expected = 16 * 4 * 2 * 64 + (whole.activations_bytes - outside) / 2 + outside
    assert block.activations_bytes == expected


def test_routed_experts_are_quantised_where_they_are_linears() -> None:
    shape = architecture(TINY | {"model_type": "mixtral", "num_local_experts": 8})
    cost = cost_of("lora", 4, shape)
    experts = 2 * 8 * 3 * 64 * 128
    dense = shape.linear_parameters - experts
    for framework, stored in ((PEFT, dense), (PARETUNE, dense), (LITGPT_2023, dense + experts)):
        step = STEP._replace(loss="full", framework=framework._replace(quantises_head=False))
        plain = training_memory(shape, cost, step)
        packed = training_memory(shape, cost, step._replace(format="nf4"))
        saved = plain.weights_bytes - packed.weights_bytes
        assert saved == pytest.approx(stored * (4 - BITS_PER_WEIGHT["nf4"] / 8))


def test_full_attention_keeps_no_output_but_for_the_linear_that_reads_it() -> None:
    """GPT-NeoX: the kernel keeps the fused product, which value is a view of, and its output; a
    plain product keeps copies.
    """
    neox = architecture(TINY | {"model_type": "gpt_neox", "num_key_value_heads": 4})
    step = STEP._replace(loss="full", framework=PEFT)
    kept = {
        (target, attention): training_memory(
            neox, cost_of("lora", 4, neox, (target,)), step._replace(attention=attention)
        ).activations_bytes
        for target in ("attention.qkv", "all-linear")
        for attention in ("flash", "full")
    }
    # Two blocks: the softmax of 4 heads and 8 keys for 4 sums; 3 x 64 for 6 x 64, or 7 with the
    # output's linear beside it.
    rises = 2 * 16 * 4 * (4 * 8 - 4 - 3 * 64)
    assert kept["attention.qkv", "full"] - kept["attention.qkv", "flash"] == rises
    assert kept["all-linear", "full"] - kept["all-linear", "flash"] == rises + 2 * 16 * 4 * 64


def test_the_first_mlp_needs_no_gradient_beside_an_attention_that_is_adapted_alone() -> None:
    config = TINY | {"model_type": "gpt_neox", "num_key_value_heads": 4}
    beside, after = (
        architecture(config | {"use_parallel_residual": parallel}) for parallel in (True, False)
    )
    kept = [
        training_memory(shape, cost_of("lora", 4, shape, ("attention.qkv",)), STEP)
        for shape in (beside, after)
    ]
    # The MLP's input to its GELU in one block, and the norms' of one block, which are one.
    difference = kept[1].activations_bytes - kept[0].activations_bytes
    assert difference == 16 * 4 * (128 + 2 * 64)


def test_capped_scores_and_logits_are_kept() -> None:
    """Gemma 2 has no kernel in torch for its scores, so they are kept whatever a step asks for."""
    config = TINY | {"model_type": "gemma2", "head_dim": 16}
    plain = config | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    step = STEP._replace(compute="bf16", format="bf16", loss="full", framework=PEFT)
    memory, uncapped = (
        training_memory(shape, cost_of("lora", 4, shape), step)
        for shape in (architecture(config), architecture(plain))
    )
    assert memory.activations_bytes - uncapped.activations_bytes == 2 * 16 * 2 * 4 * 8
    assert memory.logits_bytes - uncapped.logits_bytes == 16 * 2 * 256
    full = training_memory(
        architecture(config), cost_of("lora", 4, SHAPE), step._replace(attention="full")
    )
    flash = training_memory(architecture(config), cost_of("lora", 4, SHAPE), step)
    assert full == flash


def test_bloom_keeps_the_input_of_its_gelu_alone() -> None:
    shape = architecture(
        {"model_type": "bloom", "n_embed": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256}
    )
    memory = training_memory(shape, cost_of("lora", 4, shape, ("attention.qkv",)), STEP)
    # Norms, query, key and value, the softmax of 8 keys, GELU, the adapted input and A x; the norm
    # after the embedding takes the place of the first, which no gradient reaches.
    block = 2 * 64 + 3 * 64 + 4 * 8 + 256 + 64 + 4
    assert memory.activations_bytes == 16 * 4 * (2 * block + 2 * 64)


def test_a_router_keeps_what_its_experts_gave() -> None:
    """Of 16 experts 8, each 48 wide; 2 x 8 tokens, fp32, LoRA r4 on attention."""
    config = TINY | {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 16,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 48,
    }
    shape = architecture(config)
    memory = training_memory(shape, cost_of("lora", 4, shape), STEP)
    # As in test_by_hand, with the norms of 4 + 2 heads; the MLP's linears have no adapters.
    attention = 64 + 6 * 16 + 4 * 64 + 4 + 64 + 4 * 4
    # A norm's input, the three factors, the outputs, the softmax, and 4 64-bit indices a choice.
    experts = 64 + 8 * (3 * 48 + 64) + 16 + 4 * 2 * 8
    assert memory.activations_bytes == 16 * 4 * (2 * (attention + experts) - 64 + 2 * 64)
    # The residual's gradient, and the outputs three times while they are weighted.
    flow = 16 * 4 * (64 + 3 * 8 * 64)
    logits = 14 * 256 * 4 + 2 * 14 * 64 * 4
    assert memory.live_bytes == memory.activations_bytes - 16 * 4 * 2 * 64 + flow > logits
    # Qwen2's shared expert has a gate, that keeps its output.
    shared = {"shared_expert_intermediate_size": 96, "num_experts_per_tok": 4}
    assert architecture(config | {"model_type": "qwen2_moe"} | shared).weighted_outputs == 5


def test_full_attention_keeps_the_scores() -> None:
    flash, full = memory_of(), memory_of(attention="full")
    # The softmax of 4 heads and 8 keys per token, for the sums that the kernel keeps.
    difference = 2 * 16 * 4 * (4 * 8 - 4)
    assert full.activations_bytes - flash.activations_bytes == difference


def test_dropout_keeps_a_copy_and_a_mask_of_every_adapted_input() -> None:
    plain, dropped = memory_of(), memory_of(dropout=0.1)
    # q, k, v, o, gate and up read 64, down 128; without dropout the attention's input, the MLP's
    # and down's are kept once each.
    own, shared = 6 * 64 + 128, 2 * 64 + 128
    difference = 2 * 16 * (own * 5 - shared * 4)
    assert dropped.activations_bytes - plain.activations_bytes == difference


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_number"),
    [("adamw", 8), ("adamw8bit", 2 + 8 / 256), ("paged_adamw8bit", 0), ("sgd", 0), ("galore", 8)],
)
def test_optimizer_states(optimizer: str, bytes_per_number: float) -> None:
    memory = memory_of(optimizer=optimizer)
    assert memory.optimizer_bytes == pytest.approx(bytes_per_number * LORA.trainable_parameters)


def test_galore_keeps_moments_of_projected_gradients() -> None:
    full = cost_of("full", None, SHAPE)
    step = STEP._replace(trains_base=True)
    adamw = training_memory(SHAPE, full, step)
    galore = training_memory(SHAPE, full, step._replace(optimizer="galore"))
    assert adamw.optimizer_bytes == 8 * SHAPE.parameters
    # Linears 64x64 twice, 32x64 twice, 128x64 three times, two blocks; ranks are the narrow sides.
    projected = 2 * (2 * (3 * 64 * 64) + 2 * (2 * 32 * 64 + 32 * 32) + 3 * (2 * 64 * 128 + 64 * 64))
    others = 2 * (SHAPE.parameters - SHAPE.linear_parameters)
    assert galore.optimizer_bytes == 4 * (projected + others)


def test_nf4_takes_4_127_bits_a_weight() -> None:
    assert BITS_PER_WEIGHT["nf4"] == pytest.approx(4.127, abs=5e-4)
    linear = SHAPE.linear_parameters
    expected = linear * BITS_PER_WEIGHT["nf4"] / 8 + (SHAPE.parameters - linear) * 4
    assert weights_bytes(SHAPE, "nf4", 4) == expected
    # The largest linear is dequantised beside its codes as 32-bit indices.
    tokenless = memory_of(format="nf4", batch_size=0)
    assert tokenless.workspace_bytes == 6 * 64 * 128


def test_a_trained_base_has_fp32_masters_in_the_compiler_only() -> None:
    full = cost_of("full", None, LLAMA)
    step = BF16._replace(trains_base=True)
    ours = training_memory(LLAMA, full, step)
    theirs = training_memory(LLAMA, full, step._replace(framework=PEFT))
    assert ours.weights_bytes == ours.gradients_bytes == 4 * LLAMA.parameters
    assert theirs.weights_bytes == theirs.gradients_bytes == 2 * LLAMA.parameters
    assert theirs.optimizer_bytes == 4 * LLAMA.parameters


@pytest.mark.parametrize(("optimizer", "roots"), [("adamw", 1), ("adamw8bit", 0), ("sgd", 0)])
def test_torch_takes_the_roots_of_all_second_moments_at_once(optimizer: str, roots: int) -> None:
    shape = catalog.model("llama-3.1-8b").architecture
    full = cost_of("full", None, shape)
    step = BF16._replace(trains_base=True, batch_size=1, sequence_length=1, optimizer=optimizer)
    theirs = training_memory(shape, full, step._replace(framework=PEFT))
    held = theirs.stored_bytes + theirs.gradients_bytes
    assert theirs.peak_allocated_bytes == held + roots * 2 * shape.parameters
    # The compiler's kernel is fused.
    ours = training_memory(shape, full, step)
    assert ours.peak_allocated_bytes < ours.stored_bytes + 1.2 * ours.gradients_bytes


PUBLISHED = {
    ("mistral-7b", "full", "bf16", "trainer-2024"): (72.97, 72.97),
    ("mistral-7b", "lora", "bf16", "trainer-2024"): (26.11, 37.10),
    ("mistral-7b", "lora", "nf4", "trainer-2024"): (15.86, 26.85),
    ("mistral-7b", "lora", "nf4", "trl-2024"): (22.83, 40.28),
    ("mixtral-8x7b", "lora", "nf4", "trainer-2024"): (36.22, 47.21),
    ("mixtral-8x7b", "lora", "nf4", "trl-2024"): (46.42, 67.09),
    ("llama-2-70b", "lora", "nf4", "trainer-2024"): (68.16, None),
}
"""GB allocated at the peak of 4 and of 8 packed sequences of 4096 tokens, blocks recomputed, LoRA
r16 on the attention's linears, on one A100 (foundation-model-stack/fms-acceleration,
scripts/benchmarks/refs/a100_80gb.csv, of 2024).
"""


POWER_LM = {
    "model_type": "llama",
    "hidden_size": 2304,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "num_key_value_heads": 36,
    "intermediate_size": 9216,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""ibm/PowerLM-3b, whose granite blocks are llama's, scaled."""


@pytest.mark.parametrize(
    ("name", "format_", "framework", "peaks"),
    [
        ("full", "bf16", "trainer-2024", (35.13, 47.06)),
        ("lora", "bf16", "trainer-2024", (20.19, 33.18)),
        ("lora", "nf4", "trainer-2024", (15.15, 28.13)),
        ("lora", "nf4", "trl-2024", (18.17, 34.18)),
    ],
)
def test_published_peaks_of_a_model_beside_the_catalogue(
    name: str, format_: str, framework: str, peaks: tuple[float, float]
) -> None:
    """As below, with dropout 0.1 (refs/a100_80gb_granite.csv)."""
    dropout = 0.0 if name == "full" else 0.1
    step = BF16._replace(format=format_, framework=FRAMEWORKS[framework], dropout=dropout)
    for batch_size, peak in zip((4, 8), peaks, strict=True):
        found = packed_peak(architecture(POWER_LM), name, step._replace(batch_size=batch_size))
        assert found == pytest.approx(peak * 1e9, rel=0.03)


@pytest.mark.parametrize("run", PUBLISHED, ids="-".join)
def test_published_peaks_of_transformers(run: tuple[str, str, str, str]) -> None:
    model, name, format_, framework = run
    step = BF16._replace(
        format=format_,
        adapter_dtype="bf16" if format_ == "bf16" else "fp32",
        framework=FRAMEWORKS[framework],
    )
    shape = catalog.model(model).architecture
    for batch_size, peak in zip((4, 8), PUBLISHED[run], strict=True):
        found = packed_peak(shape, name, step._replace(batch_size=batch_size))
        assert peak is None or found == pytest.approx(peak * 1e9, rel=0.06)


def packed_peak(shape: Architecture, name: str, step: Step) -> float:
    full = name == "full"
    attention = tuple(f"attention.{part}" for part in ("query", "key", "value", "output"))
    adapter = cost_of(name, None if full else 16, shape, ("all-linear",) if full else attention)
    packed = {"sequence_length": 4096, "checkpointing": "block", "loss": "full"}
    step = step._replace(trains_base=full, **packed)  # type: ignore[arg-type]
    return training_memory(shape, adapter, step).peak_allocated_bytes


def test_a_prepared_quantised_base_is_fp32_between_its_products() -> None:
    prepared = BF16._replace(format="nf4", loss="full", framework=FRAMEWORKS["trl-2024"])
    plain = prepared._replace(framework=FRAMEWORKS["trainer-2024"])
    wide, narrow = training_memory(LLAMA, QV, prepared), training_memory(LLAMA, QV, plain)
    others = LLAMA.parameters - LLAMA.linear_parameters
    assert wide.weights_bytes - narrow.weights_bytes == 2 * others
    assert wide.logits_bytes - narrow.logits_bytes == 2 * LLAMA.vocab * LLAMA.hidden
    # Wider are the MLP's three tensors; the inputs of query, key, value, gate and up are copied for
    # each product, and for the adapters of query and value, which had the product's.
    grown = 2 * (3 * 8192) + 2 * (5 - 2) * 3072 + 2 * 2 * 3072
    assert wide.activations_bytes - narrow.activations_bytes == BF16.tokens * 28 * grown
    dense = prepared._replace(format="bf16")
    assert training_memory(LLAMA, QV, dense) == training_memory(
        LLAMA, QV, dense._replace(framework=FRAMEWORKS["trainer-2024"])
    )


@pytest.mark.parametrize(("name", "crossed"), [("bert-base", 0), ("gpt2", 0), ("flan-t5-xl", 1)])
def test_transformers_trains_with_the_dropout_of_the_model(name: str, crossed: int) -> None:
    shape = catalog.model(name).architecture
    step = BF16._replace(
        causal=shape.kind != "encoder", labels=2 * (shape.kind == "encoder"), loss="full"
    )
    lora = cost_of("lora", 8, shape, ("attention.output",))
    for attention in ("flash", "full"):
        if attention == "flash" and shape.writes_scores:
            continue
        theirs = step._replace(attention=attention, framework=PEFT)
        still = theirs._replace(framework=PEFT._replace(drops=False))
        grown = (
            training_memory(shape, lora, theirs).activations_bytes
            - training_memory(shape, lora, still).activations_bytes
        )
        # A byte of every number that a sublayer adds, and of every score.
        masks = (2 * (shape.layers + shape.encoder_layers) + crossed * shape.layers) * shape.hidden
        # T5 drops of what its MLP's last linear reads too.
        masks += crossed * (shape.layers + shape.encoder_layers) * shape.intermediate
        attentions = shape.layers + shape.encoder_layers + crossed * shape.layers
        scores = attentions * shape.heads * 768 if attention == "full" else 0
        assert grown == pytest.approx(step.tokens * (masks + scores))
    # In fp32 the softmax stays, and what its dropout left is kept beside it.
    wide = step._replace(attention="full", compute="fp32", format="fp32", framework=PEFT)
    still = wide._replace(framework=PEFT._replace(drops=False))
    grown = training_memory(shape, lora, wide).activations_bytes
    grown -= training_memory(shape, lora, still).activations_bytes
    assert grown == pytest.approx(step.tokens * (masks + 5 * attentions * shape.heads * 768))


def test_a_config_says_whether_its_model_is_trained_with_dropout() -> None:
    bert = {
        "model_type": "bert",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 256,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    }
    assert architecture(bert).drops_scores
    assert not architecture(bert | {"attention_probs_dropout_prob": 0.0}).drops_scores
    assert architecture(bert | {"attention_probs_dropout_prob": 0.0}).drops_stream
    assert not SHAPE.drops_scores
    assert not SHAPE.drops_stream
    assert architecture(TINY | {"attention_dropout": 0.1}).drops_scores
    assert catalog.model("t5-base").architecture.drops_inner
    assert not catalog.model("bart-large").architecture.drops_inner
    assert catalog.model("phi-2").architecture.drops_stream
    assert not catalog.model("phi-1.5").architecture.drops_stream
    assert architecture(TINY | {"model_type": "phi3", "resid_pdrop": 0.1}).drops_stream


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b", "bert-base"])
def test_mixed_precision_trains_an_fp32_base_beside_a_copy(name: str) -> None:
    shape = catalog.model(name).architecture
    causal = shape.kind == "decoder"
    mixed = BF16._replace(
        trains_base=True,
        format="fp32",
        causal=causal,
        labels=0 if causal else 2,
        loss="full",
        batch_size=1,
        sequence_length=1,
        framework=FRAMEWORKS["trainer"],
    )
    full = cost_of("full", None, shape)
    memory = training_memory(shape, full, mixed)
    assert memory.weights_bytes == 4 * shape.parameters
    assert memory.gradients_bytes == pytest.approx(4 * shape.parameters, rel=1e-4)
    assert memory.optimizer_bytes == pytest.approx(8 * shape.parameters, rel=1e-4)
    # Products read the copies; the embedding is none, unless it is the head too.
    copied = shape.parameters - (0 if shape.tied and causal else shape.vocab * shape.hidden)
    assert memory.activations_bytes == pytest.approx(2 * copied, rel=0.01)


def test_mixed_precision_keeps_the_inputs_of_adapters_in_the_type_of_the_products() -> None:
    step = BF16._replace(loss="full")
    own = training_memory(LLAMA, QV, step)
    mixed = training_memory(LLAMA, QV, step._replace(framework=FRAMEWORKS["trainer"]))
    kept = 28 * 2 * (3072 + 32)
    assert own.activations_bytes - mixed.activations_bytes == BF16.tokens * (4 - 2) * kept
    # What a quantised product reads is kept once.
    quantised = step._replace(format="nf4", framework=FRAMEWORKS["trainer"])
    once = training_memory(LLAMA, QV, quantised).activations_bytes
    assert mixed.activations_bytes - once == BF16.tokens * 28 * 2 * 3072


@pytest.mark.parametrize("name", ["ia3", "dora"])
def test_a_scale_keeps_what_the_base_gave_in_the_type_of_the_base(name: str) -> None:
    """PEFT multiplies it by fp32 scales; torch keeps the factors of a product as they came."""
    rank = 32 if name == "dora" else None
    scaled = cost_of(name, rank, LLAMA, ("attention.query", "attention.value"))
    step = BF16._replace(loss="full")
    wide = training_memory(LLAMA, scaled, step)
    narrow = training_memory(LLAMA, scaled, step._replace(adapter_dtype="bf16"))
    # In fp32 are the inputs of LoRA's pair, which keep bf16 only once, A x and B A x.
    outputs = 3072 + 1024
    grown = 28 * ((4 * 2 - 2) * 3072 + 2 * (2 * 32 + outputs)) if name == "dora" else 0
    assert wide.activations_bytes - narrow.activations_bytes == BF16.tokens * grown
    assert narrow.activations_bytes > BF16.tokens * 28 * 2 * outputs


def test_a_published_dry_run_of_transformers_and_peft() -> None:
    """LoRA r32 on q and v, Llama-3.2-3B, bf16, 4 x 768 tokens, all logits: 21.2 GiB."""
    memory = training_memory(LLAMA, QV, BF16._replace(loss="full"))
    assert memory.peak_allocated_bytes / 2**30 == pytest.approx(21.2, rel=0.01)
    # Allocated memory rises by 16 bytes a number when the rank doubles, beside A x in fp32.
    double = cost_of("lora", 64, LLAMA, ("attention.query", "attention.value"))
    wider = training_memory(LLAMA, double, BF16._replace(loss="full"))
    latents = BF16.tokens * 4 * 28 * 2 * 32
    grown = wider.stored_bytes + wider.gradients_bytes + wider.activations_bytes
    grown -= memory.stored_bytes + memory.gradients_bytes + memory.activations_bytes
    assert grown == 16 * 9_175_040 + latents


def test_litgpt_unties_heads_and_keeps_what_is_multiplied_with_quantised_weights() -> None:
    tied = training_memory(LLAMA, QV, BF16._replace(loss="full"))
    untied = training_memory(LLAMA, QV, BF16._replace(framework=LITGPT_2023, loss="full"))
    head = 2 * LLAMA.vocab * LLAMA.hidden
    assert untied.weights_bytes - tied.weights_bytes == head
    step = BF16._replace(framework=LITGPT_2023, loss="full", format="nf4")
    kept = step._replace(framework=LITGPT_2023._replace(keeps_quantised_inputs=()))
    difference = (
        training_memory(LLAMA, QV, step).activations_bytes
        - training_memory(LLAMA, QV, kept).activations_bytes
    )
    # The MLP's input and its product, 28 layers; the adapters keep the attention's input anyway.
    assert difference == pytest.approx(BF16.tokens * 2 * 28 * (3072 + 8192))


@pytest.mark.parametrize(
    ("targets", "inputs", "outputs"),
    [
        (("attention.query", "attention.value"), 1, 64 + 32),
        (("attention.query", "attention.key", "attention.value"), 2, 0),
        (("attention.query",), 0, 64),
        (("mlp.up",), 0, 0),
    ],
)
def test_litgpt_drops_the_input_of_query_key_and_value_once_and_pads_their_outputs(
    targets: tuple[str, ...], inputs: int, outputs: int
) -> None:
    apart = LITGPT_2023._replace(name="apart", fuses_qkv=False)
    cost = cost_of("lora", 4, SHAPE, targets)
    fused, separate = (
        training_memory(SHAPE, cost, STEP._replace(loss="full", dropout=0.1, framework=program))
        for program in (LITGPT_2023, apart)
    )
    # Inputs are 64 wide, with a mask; two blocks of 16 tokens. Grouped keys are copied either way.
    expected = 2 * 16 * (4 * outputs - inputs * 64 * 5)
    assert fused.activations_bytes - separate.activations_bytes == expected


def test_bitsandbytes_keeps_what_is_multiplied_with_int8_weights_only() -> None:
    step = BF16._replace(loss="full")
    kept = {
        format_: training_memory(LLAMA, QV, step._replace(format=format_)).activations_bytes
        for format_ in ("bf16", "nf4", "int8")
    }
    assert kept["nf4"] == kept["bf16"]
    # Both norms' outputs and the MLP's product; the adapters keep copies in fp32.
    assert kept["int8"] - kept["bf16"] == BF16.tokens * 2 * 28 * (2 * 3072 + 8192)


def test_dropout_is_of_the_method() -> None:
    """VeRA's A is frozen and needs a mask alone; IA3 has no dropout."""
    masks = 2 * 16 * (2 * 64 + 128)
    for name, rank, expected in (("vera", 64, masks), ("ia3", None, 0)):
        cost = cost_of(name, rank, SHAPE, ("attention.key", "attention.value", "mlp.down"))
        plain, dropped = (
            training_memory(SHAPE, cost, STEP._replace(dropout=share)) for share in (0.0, 0.1)
        )
        assert dropped.activations_bytes - plain.activations_bytes == expected


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("checkpointing", ["none", "block"])
@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_columns_give_what_numbers_give(framework: str, checkpointing: str, loss: str) -> None:
    names = [name for name in methods() if not methods()[name].trains_base]
    ranks = {name: methods()[name].ranks or (None,) for name in names}
    roles = {target.role for target in LLAMA.targets}
    targets = {name: tuple(r for r in method(name).targets if r in roles) for name in names}
    costs = [cost_of(name, ranks[name][0], LLAMA, targets[name]) for name in names]
    batches, lengths = [1, 4, 16, 3], [2048, 17, 512, 4096]
    costs = [costs[i % len(costs)] for i in range(4 * len(costs))]
    step = BF16._replace(checkpointing=checkpointing, loss=loss, framework=FRAMEWORKS[framework])
    columns = AdapterCost(*(np.array(column) for column in zip(*costs, strict=True)))
    batch = np.array([batches[i % 4] for i in range(len(costs))])
    length = np.array([lengths[i % 4] for i in range(len(costs))])
    found = training_memory(
        LLAMA,
        columns,
        step._replace(batch_size=batch, sequence_length=length),  # type: ignore[arg-type]
    )
    for i, cost in enumerate(costs):
        one = step._replace(batch_size=int(batch[i]), sequence_length=int(length[i]))
        expected = training_memory(LLAMA, cost, one).peak_allocated_bytes
        assert found.peak_allocated_bytes[i] == pytest.approx(expected)  # type: ignore[index]


@pytest.mark.parametrize("name", catalog.names("models"))
@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_longer_or_more_sequences_never_take_less(name: str, checkpointing: str) -> None:
    shape = catalog.model(name).architecture
    cost = cost_of("lora", 8, shape)
    step = BF16._replace(checkpointing=checkpointing, causal=shape.kind != "encoder", labels=2)
    sizes = [(1, 64), (1, 65), (1, 512), (2, 512), (8, 512), (8, 2048)]
    peaks = [
        training_memory(
            shape, cost, step._replace(batch_size=batch, sequence_length=length)
        ).peak_allocated_bytes
        for batch, length in sizes
    ]
    assert peaks == sorted(peaks)
    assert peaks[0] > weights_bytes(shape, "bf16", 2)


def test_reserved_is_above_allocated_and_says_of_what() -> None:
    memory = training_memory(LLAMA, QV, BF16)
    found = reserved(memory, "gpu")
    assert found.reserved_bytes > memory.peak_allocated_bytes
    assert found.device_bytes > found.reserved_bytes
    # Whole segments of 2 MiB.
    assert found.reserved_bytes % 2**21 == 0


def test_published_peaks_and_dry_runs_are_met() -> None:
    script = ROOT / "tests/bench/bench_memory.py"
    done = subprocess.run(
        [sys.executable, script, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["measured"]["cases"] >= 70
    assert summary["dry run"]["cases"] >= 200


def test_the_parts_of_a_trained_tied_base_hold_its_peak() -> None:
    """The embedding's gradient is added to the head's when both are there."""
    shape = architecture(TINY | {"tie_word_embeddings": True, "vocab_size": 2**20})
    full = cost_of("full", 0, shape)
    step = STEP._replace(trains_base=True, loss="full", framework=PEFT, checkpointing="block")
    memory = training_memory(shape, full, step._replace(batch_size=1, optimizer="adamw8bit"))
    assert memory.workspace_bytes >= 4 * 2**20 * 64
    assert memory.peak_allocated_bytes <= sum(memory.parts().values())
