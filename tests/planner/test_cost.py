"""Costs against arithmetic written out here."""

import pytest

from planner import catalog
from planner.adapters import Adapter, adapted, adapters, select
from planner.architecture import Architecture, architecture
from planner.case import Case, case_spec
from planner.cost.adapter import AdapterCost, TargetSet, adapter_cost, target_set
from planner.cost.memory import Load, cache_bytes, serving_memory
from planner.cost.trace import ShapeTensor, linear_cost
from planner.cost.weights import BITS_PER_WEIGHT
from planner.estimation import estimate
from planner.method import Method, Target, method, target_dimensions
from planner.resolve import resolve

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
    ia3 = linears_of(method("ia3"), ("attention.key", "attention.value", "mlp.down"), shape)
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
    slots=3,
    sequences=3,
    context_length=16,
    prompt_tokens=8,
    causal=True,
    cache_element_bytes=4,
    other_bytes=4,
    row_element_bytes=4,
)


def test_serving_memory_by_hand() -> None:
    adapter = cost_of(method("lora"), 4)
    unmerged = serving_memory(SHAPE, adapter, "fp32", "unmerged", LOAD)
    assert unmerged.weights_bytes == 4 * SHAPE.parameters
    directory = 14 * 96
    assert adapter.row_bytes == 4 * adapter.trainable_parameters + directory
    assert unmerged.bank_bytes == 3 * adapter.row_bytes
    assert unmerged.cache_bytes == 3 * 16 * (2 * 2 * 2 * 16) * 4
    assert unmerged.workspace_bytes == 4 * (8 * (4 * 64 + 3 * 128) + 256)
    merged = serving_memory(SHAPE, adapter, "fp32", "merged", LOAD)
    assert (merged.weights_bytes, merged.bank_bytes) == (3 * 4 * SHAPE.parameters, 0)


def test_vera_tenants_share_their_pair() -> None:
    vera, lora = cost_of(method("vera"), 64), cost_of(method("lora"), 16)
    assert vera.shared_bytes == 4 * 64 * (128 + 128)
    assert vera.row_bytes < lora.row_bytes / 4
    assert vera.stored_bytes == 4 * vera.trainable_parameters


def served(runtime: str, **named: object) -> dict[str, float]:
    """Bytes of serving Llama-3.1-8B, rank 16 on all linears, by part."""
    case = {"model": "llama-3.1-8b", "tenants": 8, "runtime": runtime, **named}
    found = estimate(Case.model_validate(case)).figures
    parts = {key: found[key].value or 0.0 for key in found if key.startswith("serving.")}
    return {key.rpartition(".")[2]: value for key, value in parts.items()}


@pytest.mark.parametrize(("runtime", "element"), [("paretune", 4), ("lorax", 2), ("llama.cpp", 2)])
def test_a_bank_has_the_runtime_s_type(runtime: str, element: int) -> None:
    """41.9 million numbers and a directory, of eight tenants."""
    found = served(runtime)
    assert found["bank_bytes"] == 8 * found["row_bytes"]
    assert found["row_bytes"] == pytest.approx(element * 41_943_040, rel=1e-3)


@pytest.mark.parametrize(
    ("named", "held"),
    [
        ({"rank": 8}, 8),
        ({"rank": 8, "targets": ("attention.query", "attention.value")}, 8),
        ({"rank": 4}, 8),
        ({"rank": 24}, 32),
        ({"method": "pissa", "rank": 24}, 64),
    ],
)
def test_vllm_holds_a_row_of_its_own_ranks_for_every_linear(
    named: dict[str, object], held: int
) -> None:
    """Its create_lora_weights: max_lora_rank x (in + out) of each, whichever an adapter has."""
    block = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    embedding = head = 128256 + 4096
    found = served("vllm", **named)
    numbers = held * (32 * block + embedding + head)
    assert found["bank_bytes"] == pytest.approx(8 * 2 * numbers, rel=1e-3)
    assert found["row_bytes"] == found["bank_bytes"] / 8


def test_vllm_holds_rows_for_all_experts_and_reads_those_of_two() -> None:
    """Mixtral 8x7B at rank 8, adapted in its attention alone."""
    found = served("vllm", model="mixtral-8x7b", rank=8)
    attention, router = 2 * (4096 + 4096) + 2 * (4096 + 1024), 4096 + 8
    expert = 3 * (4096 + 14336)
    whole = 32 * 8 * (attention + router + 8 * expert)
    assert found["row_bytes"] == pytest.approx(2 * whole, rel=1e-3)
    case = Case(model="mixtral-8x7b", method="lora", rank=8, runtime="vllm")
    adapter = next(adapters(resolve(case_spec(case, method("lora"))), unbuildable=True))
    assert isinstance(adapter, Adapter)
    read = adapter.cost.row_bytes - adapter.cost.unread_row_bytes
    assert read == pytest.approx(4 * (whole - 32 * 8 * 6 * expert), rel=1e-3)


def test_a_prompt_s_workspace_by_hand() -> None:
    """Logits of the last token, and the scores of a layer where its attention writes them."""

    def workspace(load: Load) -> float:
        return serving_memory(SHAPE, cost_of(method("lora"), 4), "fp32", "merged", load)[-1]

    block = 4 * 64 + 3 * 128
    assert workspace(LOAD) == 4 * (8 * block + 256)
    assert workspace(LOAD._replace(other_bytes=2)) == 2 * 8 * block + 4 * 256
    assert workspace(LOAD._replace(logits="all")) == 4 * 8 * (block + 256)
    assert workspace(LOAD._replace(writes_scores=True)) == 4 * (8 * block + 4 * 8 * 8 + 256)
    # Two sequences more than the prompt has tokens make the decoding step the larger.
    assert workspace(LOAD._replace(sequences=10)) == 4 * 10 * (block + 256)
    assert workspace(LOAD._replace(causal=False)) == 4 * 8 * block


@pytest.mark.parametrize(
    ("runtime", "gib"), [("paretune", 3.63), ("vllm", 1.82), ("onnxruntime-genai", 9.64)]
)
def test_only_a_graph_with_all_logits_holds_those_of_a_long_prompt(
    runtime: str, gib: float
) -> None:
    """16,384 tokens of a vocabulary of 128,256 are 7.8 GiB of logits."""
    wide = {"context_length": 16384, "prompt_tokens": 16384, "hardware": "a100-80gb"}
    found = served(runtime, tenants=1, **wide)
    assert found["workspace_bytes"] / 2**30 == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("hardware", "element", "loads"), [("l4", 2, "fp32 or bf16"), ("cpu-16core", 4, "fp32")]
)
def test_onnxruntime_genai_has_graphs_of_16_bits_on_a_gpu_alone(
    hardware: str, element: int, loads: str
) -> None:
    case = {"model": "llama-3.2-1b", "runtime": "onnxruntime-genai", "hardware": hardware}
    found = estimate(Case.model_validate({**case, "format": "nf4"})).figures
    source = found["serving.memory_bytes"].source
    assert source.endswith(f"onnxruntime-genai loads {loads} only")
    assert found["serving.parts.cache_bytes"].value == 2048 * 16 * 2 * 8 * 64 * element


def test_an_encoder_decoder_keeps_what_it_read_for_its_cross_attention() -> None:
    """2,048 tokens of context: of 24 layers, keys and values of what was read or was written."""
    found = served("paretune", model="flan-t5-xl", tenants=1, context_length=2048)
    assert found["cache_bytes"] == 2048 * 24 * 2 * 2048 * 4


@pytest.mark.parametrize(
    ("runtime", "window", "element"),
    [("paretune", 32768, 4), ("vllm", 512, 2), ("llama.cpp", 1024, 2)],
)
def test_a_sliding_layer_keeps_what_the_runtime_lets_it(
    runtime: str, window: int, element: int
) -> None:
    """Gemma 3 1B: 4 layers see 32,768 tokens, 22 look back 512; one head of 256."""
    found = served(runtime, model="gemma-3-1b", tenants=1, context_length=32768)
    assert found["cache_bytes"] == (4 * 32768 + 22 * window) * 2 * 256 * element


def test_a_short_context_fills_no_window() -> None:
    shape = catalog.model("gemma-3-1b").architecture
    load = LOAD._replace(context_length=100)
    assert cache_bytes(shape, load._replace(beside_window=0)) == cache_bytes(shape, load)
    assert cache_bytes(shape, load, 50) == cache_bytes(shape, load) / 2


@pytest.mark.parametrize(("slots", "concurrency"), [(1, 32), (500, 32)])
def test_rows_follow_the_tenants_and_keys_and_values_the_requests(
    slots: int, concurrency: int
) -> None:
    document = {"model": "llama-3.1-8b", "tenants": slots, "context_length": 1024}
    one, many = (
        estimate(Case.model_validate({**document, "concurrency": n})).serving["parts"]
        for n in (1, concurrency)
    )
    assert many["cache_bytes"] == concurrency * one["cache_bytes"]
    assert many["bank_bytes"] == one["bank_bytes"]
    alone = estimate(Case.model_validate({**document, "tenants": 1})).serving["parts"]
    assert many["bank_bytes"] == slots * alone["bank_bytes"]


def test_this_project_s_runtime_leaves_routed_experts_unquantised() -> None:
    """They are one tensor and no linear; of a runtime that quantises them they take 4 bits."""
    shape = catalog.model("qwen1.5-moe-a2.7b").architecture
    cost = AdapterCost(0, 0, 0, 0, 0, 0)
    load = Load(
        1, 1, 2048, 1024, causal=True, cache_element_bytes=4, other_bytes=4, row_element_bytes=4
    )
    quantised, dense = (
        serving_memory(shape, cost, "nf4", "unmerged", load._replace(quantises_experts=flag))
        for flag in (True, False)
    )
    added = shape.expert_parameters * (4 - BITS_PER_WEIGHT["nf4"] / 8)
    assert dense.weights_bytes - quantised.weights_bytes == pytest.approx(added)
    same = serving_memory(shape, cost, "bf16", "unmerged", load._replace(quantises_experts=False))
    assert same == serving_memory(shape, cost, "bf16", "unmerged", load)
