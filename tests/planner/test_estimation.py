"""Estimates of explicit candidates: every figure has evidence, and options move what they name."""

import itertools
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner import Case, catalog, estimate
from planner.cli import main
from planner.errors import UsageError
from planner.method import methods
from planner.quality import method_quality, unranked
from planner.spec import Pinned

LLAMA = Case(model="llama-3.2-3b", method="lora", rank=32, batch_size=4, sequence_length=768)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def peak(case: Case) -> float:
    found = estimate(case).figures["training.peak_allocated_bytes"].value
    assert found is not None
    return found


def changed(**fields: object) -> Case:
    return Case.model_validate(LLAMA.model_dump() | fields)


def test_the_command_prints_every_part_and_its_evidence() -> None:
    words = (
        "estimate --model llama-3.2-3b --method lora --rank 16 "
        "--targets attention.query,attention.value --format nf4 --batch 4 --sequence 768 "
        "--checkpointing block --attention full --optimizer paged_adamw8bit --loss full "
        "--hardware l40s --json"
    )
    document = json.loads(run(*words.split()).stdout)
    assert document["schema_version"] == 1
    training = document["training"]
    assert training["peak_reserved_bytes"] > training["peak_allocated_bytes"] > 0
    assert {"weights_bytes", "activations_bytes", "optimizer_bytes"} <= set(training["parts"])
    # Two pairs a layer: r (in + out) of 3072 -> 3072 and 3072 -> 1024, in 28 layers.
    assert document["trainable_parameters"] == 28 * 16 * (3072 + 3072 + 3072 + 1024)
    assert document["serving"]["memory_bytes"] > 0
    assert document["latency"]["per_token_seconds"] > 0
    for key, figure in document["figures"].items():
        assert figure["evidence"] in ("measured", "published", "derived", "assumed"), key
        value = document
        for part in key.split("."):
            value = value[part]
        assert value == figure["value"]


@pytest.mark.parametrize("name", sorted(methods()))
def test_quality_is_unknown_where_nothing_is_published(name: str) -> None:
    made_for = methods()[name].formats
    case = Case(model="llama-3.2-3b", method=name, format="bf16" if "bf16" in made_for else "nf4")
    found = estimate(case).figures["quality.difference_points"]
    if method_quality(name) is None:
        assert (found.value, found.low, found.high, found.evidence) == (None, None, None, "assumed")
        assert unranked(name) in found.source
        assert "4 points" in found.source
    else:
        assert found.value is not None
        assert found.evidence == "derived"


def test_all_linear_leaves_experts_out_and_the_help_says_so() -> None:
    def trained(*targets: str) -> float | None:
        found = estimate(Case(model="mixtral-8x7b", rank=4, targets=targets))
        return found.figures["trainable_parameters"].value

    # A block's queries and outputs are 4096 wide, its keys and values 1024.
    attention = 32 * 4 * 2 * (4096 + 4096 + 4096 + 1024)
    expert = 32 * 4 * 3 * (4096 + 14336)
    assert trained("all-linear") == attention
    assert trained("all-linear", "experts.gate", "experts.up", "experts.down") == (
        attention + 8 * expert
    )
    shown = " ".join(run("estimate", "--help").stdout.split())
    assert "all-linear (without experts, their router and the head)" in shown


@pytest.mark.parametrize("name", methods())
def test_every_method_has_an_estimate(name: str) -> None:
    case = Case(model="llama-3.2-1b", method=name, format="nf4" if name == "qlora" else "bf16")
    formats = methods()[name].formats
    case = case.model_copy(update={"format": "bf16" if "bf16" in formats else formats[0]})
    for key, figure in estimate(case).figures.items():
        assert figure.value is None or math.isfinite(figure.value), key


def test_options_move_memory_the_way_they_must() -> None:
    whole = peak(LLAMA)
    assert peak(changed(checkpointing="block")) < whole
    assert peak(changed(loss="full")) > whole
    assert peak(changed(attention="full")) > whole
    assert peak(changed(optimizer="adamw8bit")) < whole
    assert peak(changed(optimizer="paged_adamw8bit")) < peak(changed(optimizer="adamw8bit"))
    assert peak(changed(adapter_dtype="bf16")) < whole
    assert peak(changed(dropout=0.1)) > whole
    assert peak(changed(format="nf4")) < peak(changed(format="int8")) < whole
    assert peak(changed(method="full", rank=None, targets=None)) > 3 * whole


@pytest.mark.parametrize(
    ("model", "method"),
    [
        *itertools.product(
            ["smollm2-135m", "gpt2", "mixtral-8x7b", "t5-base", "bert-base", "vit-base"],
            ["lora", "full"],
        )
    ],
)
def test_more_tokens_never_take_less_memory(model: str, method: str) -> None:
    def needed(batch: int, length: int) -> float:
        return peak(Case(model=model, method=method, batch_size=batch, sequence_length=length))

    lengths = [196, 197] if model == "vit-base" else [64, 128, 500]
    # A trained base may peak in the optimizer's step, whatever the batch.
    assert needed(1, lengths[0]) <= needed(2, lengths[0]) <= needed(64, lengths[0])
    if method == "lora":
        assert needed(1, lengths[0]) < needed(64, lengths[0])
    found = [needed(2, length) for length in lengths]
    assert found == sorted(found)


def test_attention_without_a_kernel_keeps_its_scores() -> None:
    case = Case(model="gemma-2-2b", loss="full", sequence_length=512)
    found = estimate(case)
    assert found.case.attention == "full"
    assert found.figures["training.peak_allocated_bytes"].evidence == "derived"
    assert estimate(Case(model="gemma-2b")).case.attention == "flash"


def test_nf4_without_double_quantisation_takes_its_scales() -> None:
    found = {name: estimate(changed(format=name)) for name in ("nf4", "nf4_single")}
    stored = {
        name: each.figures["training.parts.weights_bytes"].value for name, each in found.items()
    }
    linears = catalog.model("llama-3.2-3b").architecture.linear_parameters
    # An fp32 scale per 64 weights; doubly quantised a byte, and an fp32 one per 256 of them.
    expected = linears / 64 * (4 - 1 - 4 / 256)
    assert stored["nf4_single"] - stored["nf4"] == pytest.approx(expected)
    for key in ("serving.memory_bytes", "quality.difference_points"):
        assert found["nf4_single"].figures[key] == found["nf4"].figures[key]
    seconds = [
        estimate(changed(format=name, hardware="l4")).figures["training.step_seconds"].value
        for name in found
    ]
    assert seconds[1] == pytest.approx(seconds[0], rel=0.01)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": "int8"}, "does not build int8 bases"),
        ({"format": "nf4_single"}, "does not build nf4_single bases"),
        ({"model": "gemma-2-2b"}, "does not build attention without a kernel, as gemma2 has"),
    ],
)
def test_what_the_compiler_does_not_build_is_assumed(
    fields: dict[str, object], reason: str
) -> None:
    peak = estimate(changed(**fields)).figures["training.peak_allocated_bytes"]
    assert peak.evidence == "assumed"
    assert peak.source.endswith(reason)
    elsewhere = estimate(changed(**fields, framework="peft"))
    assert elsewhere.figures["training.peak_allocated_bytes"].evidence == "derived"


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_size_that_a_method_weighs_can_be_asked_for(name: str) -> None:
    for size in methods()[name].ranks:
        assert Case(model="llama-2-7b", method=name, rank=size).rank == size
        assert Pinned(method=name, rank=size).rank == size


def test_the_optimizer_galore_projects_to_the_rank_of_the_method() -> None:
    def states(**fields: object) -> object:
        case = Case.model_validate({"model": "llama-2-7b", "optimizer": "galore"} | fields)
        return estimate(case).figures["training.parts.optimizer_bytes"].value

    for rank in (128, 512):
        stated = states(method="galore", rank=rank)
        assert stated == states(method="galore", rank=rank, optimizer="adamw")
    assert states(method="full") == states(method="galore", rank=128) < stated


def test_an_adapter_is_as_large_as_its_numbers_are_wide() -> None:
    wide, narrow = (estimate(changed(adapter_dtype=dtype, tenants=3)) for dtype in ("fp32", "bf16"))
    trained = wide.trainable_parameters
    assert (wide.adapter_bytes, narrow.adapter_bytes) == (4 * trained, 2 * trained)
    assert narrow.figures["adapter_bytes"].source.endswith("bf16")
    saved = wide.figures["storage.total_bytes"].value - narrow.figures["storage.total_bytes"].value
    assert saved == 3 * 2 * trained
    # A bank holds them in the runtime's type.
    assert narrow.serving["row_bytes"] == wide.serving["row_bytes"]


@pytest.mark.parametrize(
    ("format_", "runtime", "loads"),
    [
        ("int8", "paretune", "fp32 or bf16 or nf4"),
        ("fp32", "vllm", "bf16 or nf4"),
        ("nf4", "llama.cpp", "fp32 or bf16"),
    ],
)
def test_serving_a_base_that_the_runtime_does_not_load_is_assumed(
    format_: str, runtime: str, loads: str
) -> None:
    figures = estimate(changed(format=format_, runtime=runtime, hardware="cpu-2core")).figures
    for key in ("serving.memory_bytes", "serving.parts.weights_bytes", "latency.per_token_seconds"):
        assert figures[key].evidence == "assumed"
        assert figures[key].source.endswith(f"; {runtime} loads {loads} only")


def test_the_targets_of_the_command_line_are_names_between_commas() -> None:
    words = ("estimate", "--model", "smollm2-135m", "--json", "--targets")
    plain, spaced = (run(*words, targets).stdout for targets in ("q_proj,v_proj", "q_proj, v_proj"))
    assert json.loads(plain)["case"]["targets"] == ["q_proj", "v_proj"]
    assert spaced == plain
    nothing = run(*words, "")
    assert nothing.exit_code == 2
    assert "no linear matches the target ''" in nothing.stderr


def test_the_heading_calls_a_size_what_it_counts() -> None:
    for method, size in (("oft", "block size 16"), ("lora", "rank 16"), ("ia3", "ia3,")):
        found = run("estimate", "--model", "smollm2-135m", "--method", method)
        assert size in found.stdout.splitlines()[0]


def test_the_total_says_of_how_much_data_it_is() -> None:
    said = "5,000 examples, 3 epochs"
    total = estimate(changed(hardware="l4")).figures["training.total_seconds"]
    assert total.source.endswith(said)
    assert said in run("estimate", "--model", "smollm2-135m").stdout


def test_what_is_stated_can_be_asked_again() -> None:
    for fields in ({}, {"method": "full", "rank": None}, {"model": "gemma-2-2b"}):
        found = estimate(changed(**fields))
        assert estimate(found.case) == found


def test_a_config_file_is_enough(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("estimate", "--model", tmp_path, "--sequence", "64", "--targets", "q_proj,v_proj")
    assert result.exit_code == 0, result.output
    assert "peak allocated" in result.stdout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "lorra"}, "unknown method 'lorra'"),
        ({"method": "ia3", "rank": 4}, "ia3 has no rank"),
        ({"targets": ["nose"]}, "no linear matches the target 'nose'"),
        (
            {"model": "mixtral-8x7b", "method": "ia3", "targets": ["all-linear", "experts.up"]},
            "ia3 adapts nothing of the target 'experts.up'",
        ),
        ({"hardware": "l5"}, "unknown hardware 'l5'"),
        ({"method": "full", "targets": ["q_proj"]}, "full adapts no linears.*q_proj"),
        ({"method": "prompt_tuning", "targets": ["q_proj"]}, "prompt_tuning adapts no linears"),
        ({"method": "full", "adapter_dtype": "bf16"}, "full trains the model itself"),
        ({"optimizer": "galore"}, "galore projects gradients of whole matrices.*lora"),
        ({"method": "ia3", "dropout": 0.1}, "ia3 has no dropout of its inputs, so not 0.1"),
        ({"method": "fourierft", "dropout": 0.1}, "fourierft has no dropout"),
        ({"model": "gemma-2-2b", "attention": "flash"}, "gemma2 has no attention.*'flash'"),
        ({"model": "bloomz-7b1", "attention": "flash"}, "bloom has no attention"),
        ({"method": "full", "format": "nf4_single"}, "full trains on .*, not on nf4_single"),
        ({"sequence_length": 10**7}, "more than the model's"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        estimate(changed(**({"rank": None} | fields)))


def test_ia3_scales_the_keys_and_values_of_a_fused_product() -> None:
    """PEFT's own targets of GPT-NeoX: query_key_value and the input of dense_4h_to_h."""
    found = estimate(Case(model="pythia-1.4b", method="ia3"))
    assert found.figures["trainable_parameters"].value == 24 * (3 * 2048 + 8192)


@pytest.mark.parametrize("model", ["gpt2", "llama-3.2-1b"])
def test_a_methods_own_targets_are_no_part_of_the_model(model: str) -> None:
    """Whether query, key and value are one linear or three."""
    own, some = (
        estimate(Case(model=model, method="ia3", targets=targets)).figures
        for targets in (None, ("mlp.down",))
    )
    points = "quality.difference_points"
    assert (own[points].value or 0) > (some[points].value or 0)
    ranked = estimate(Case(model=model, method="ia3", targets=("all-linear",))).figures
    assert (ranked[points].value or 0) >= (own[points].value or 0)
