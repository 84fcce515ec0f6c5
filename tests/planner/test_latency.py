"""Times against arithmetic written out here, and the shape of what they depend on."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner import catalog
from planner.adapters import adapted, select
from planner.case import Case
from planner.cost import rates
from planner.cost.adapter import AdapterCost, adapter_cost, target_set
from planner.cost.latency import Served, first_token, miss_rate, per_token, throughput
from planner.cost.memory import Load
from planner.cost.training_time import ADAMW_PASSES, training_step
from planner.cost.work import CAPTURED, EAGER, EAGER_SERVER, ENGINES, Work, cost_usd
from planner.errors import UsageError
from planner.estimation import estimate
from planner.method import Target, method
from planner.recommendation import recommend
from planner.runtime import RUNTIMES
from planner.spec import Hardware, Spec

SHAPE = catalog.model("llama-3.1-8b").architecture
LOAD = Load(
    slots=1,
    sequences=1,
    context_length=2048,
    prompt_tokens=1024,
    causal=True,
    cache_element_bytes=2,
    other_bytes=2,
    row_element_bytes=4,
)
MEASURED = Hardware(
    kind="gpu",
    memory_gib=80,
    bandwidth_gb_per_second=1000,
    fp32_tflops=1000,
    bf16_tflops=1000,
    measured=True,
)
UNMERGED = Served("bf16", "unmerged", "exact")
FREE = AdapterCost(0, 0, 0, 0, 0, 0)


def lora(rank: int) -> AdapterCost:
    found = method("lora")
    linears = adapted(found, target_set(select(("all-linear",), SHAPE)))
    return adapter_cost(found, rank, linears, SHAPE)


def seconds(work: Work, device: Hardware = MEASURED, compute: str = "bf16") -> float:
    found = work.seconds(device, compute)
    assert found is not None
    return float(found)


def test_work_by_hand() -> None:
    """Products wait for the slower of arithmetic and weights; the rest is added."""
    work = Work(flops=2e15, bytes_moved=1e12, traffic_bytes=5e11, host_seconds=0.25)
    assert seconds(work) == pytest.approx(2.0 + 0.5 + 0.25)
    assert seconds(work._replace(bytes_moved=3e12)) == pytest.approx(3.0 + 0.5 + 0.25)
    assert seconds(work._replace(waits=False)) == pytest.approx(2.5)
    assert seconds(work._replace(waits=False, host_seconds=9.0)) == 9.0
    fetched = work._replace(link_bytes=rates.LINK_BYTES_PER_SECOND["gpu"])
    assert seconds(fetched) == pytest.approx(3.75)


def test_a_peak_that_is_not_measured_is_reached_in_part() -> None:
    peak = MEASURED.model_copy(update={"measured": False})
    work = Work(flops=1e15, bytes_moved=0.0)
    assert seconds(work, peak) == pytest.approx(1.0 / rates.COMPUTE["gpu"].value)
    assert rates.evidence(MEASURED) == "measured"
    assert rates.evidence(peak) == "assumed"
    assert "0.65 of peak compute (assumed)" in rates.source(peak)
    assert "0.6 of peak compute (measured)" in rates.source(catalog.hardware("cpu-2core"))


@pytest.mark.parametrize("field", ["bandwidth_gb_per_second", "bf16_tflops"])
def test_what_needs_an_unknown_figure_is_unknown(field: str) -> None:
    unknown = MEASURED.model_copy(update={field: None})
    step = per_token(SHAPE, lora(16), UNMERGED, LOAD)
    assert step.seconds(unknown, "bf16") is None
    assert throughput(step, step, LOAD, 10, unknown, "bf16") is None
    assert cost_usd(None, MEASURED) is None
    assert cost_usd(7200.0, MEASURED) is None


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_has_an_engine(runtime: str) -> None:
    step = per_token(SHAPE, lora(16), UNMERGED._replace(engine=ENGINES[runtime]), LOAD)
    assert seconds(step) > 0


def test_money_is_hours_at_the_price() -> None:
    rented = MEASURED.model_copy(update={"price_per_hour_usd": 2.5})
    assert cost_usd(7200.0, rented) == 5.0


def test_decoding_is_bound_by_bandwidth_and_prompts_by_arithmetic() -> None:
    decode = per_token(SHAPE, lora(16), UNMERGED, LOAD)
    # 7.0e9 linear weights and the head at two bytes; one fp32 row, half of 2048 tokens of cache.
    assert decode.bytes_moved == pytest.approx(15.0e9, rel=0.01)
    assert decode.traffic_bytes == pytest.approx(168e6 + 134e6, rel=0.02)
    moved = decode.bytes_moved + decode.traffic_bytes
    assert seconds(decode) == pytest.approx(moved / 1e12 + decode.host_seconds)
    prompt = first_token(SHAPE, lora(16), UNMERGED, LOAD)
    assert prompt.flops / decode.flops > 500


def test_a_batch_shares_the_base_and_gathers_a_row_each() -> None:
    """T = base (1 + a) + b f(rank): the rank counts per sequence, the base once."""
    one, eight = (LOAD._replace(slots=n, sequences=n) for n in (1, 8))
    for rank in (8, 64):
        row = lora(rank).row_bytes
        apart = per_token(SHAPE, lora(rank), UNMERGED, eight)
        alone = per_token(SHAPE, lora(rank), UNMERGED, one)
        assert apart.bytes_moved == alone.bytes_moved
        assert apart.traffic_bytes == pytest.approx(8 * alone.traffic_bytes)
        bare = per_token(SHAPE, lora(rank), UNMERGED._replace(export="merged"), one)
        assert alone.traffic_bytes - bare.traffic_bytes == row
    merged = per_token(SHAPE, lora(8), UNMERGED._replace(export="merged"), eight)
    assert merged.bytes_moved == 8 * alone.bytes_moved
    # Of one tenant eight sequences share a merged model, as of a hundred that are kept ready.
    whole = UNMERGED._replace(export="merged")
    for slots, models in ((1, 1), (100, 8)):
        step = per_token(SHAPE, lora(8), whole, LOAD._replace(slots=slots, sequences=8))
        assert step.bytes_moved == models * alone.bytes_moved


@pytest.mark.parametrize(("slots", "rows"), [(1, 1), (8, 8), (200, 96)])
def test_vllm_reads_a_row_once_for_all_sequences_of_a_tenant(slots: int, rows: int) -> None:
    """Its kernels sort a batch's tokens by adapter (vllm/lora/ops/triton_ops)."""
    load = LOAD._replace(slots=slots, sequences=96)
    grouped = UNMERGED._replace(engine=ENGINES["vllm"])
    apart = UNMERGED._replace(engine=ENGINES["lorax"])
    once, each = (per_token(SHAPE, lora(64), served, load) for served in (grouped, apart))
    saved = (96 - rows) * lora(64).row_bytes
    assert each.traffic_bytes - once.traffic_bytes == pytest.approx(saved)
    assert each.adapter_flops == once.adapter_flops


def test_a_published_slowdown_by_one_adapter_in_vllm_is_near() -> None:
    """96 prompts to Llama-2-7B on an A100 take 28 s, and 35 s with a rank of 64 (vllm#10062)."""
    case = Case(
        model="llama-2-7b",
        method="lora",
        rank=64,
        hardware="a100-40gb",
        runtime="vllm",
        context_length=481,
        prompt_tokens=246,
        concurrency=96,
    )
    times = [
        estimate(case.model_copy(update={"export": export})).latency["per_token_seconds"]
        for export in ("unmerged", "merged")
    ]
    with_one, without = (float(str(each)) for each in times)
    assert 1.0 < with_one / without < 1.5 * 35 / 28


def test_a_tenant_without_a_slot_waits_for_its_row() -> None:
    assert miss_rate(10, 10) == miss_rate(10, 25) == 0.0
    assert miss_rate(10, 4) == pytest.approx(0.6)
    there = first_token(SHAPE, lora(16), UNMERGED, LOAD)
    missing = first_token(SHAPE, lora(16), UNMERGED._replace(miss_rate=0.6), LOAD)
    fetch = 0.6 * lora(16).row_bytes / rates.LINK_BYTES_PER_SECOND["gpu"]
    assert seconds(missing) - seconds(there) == pytest.approx(fetch)


def test_dequantising_apart_writes_and_reads_the_weights_again() -> None:
    quantised, two = UNMERGED._replace(format="nf4"), LOAD._replace(sequences=2)
    within = per_token(SHAPE, lora(16), quantised, two)
    apart = per_token(SHAPE, lora(16), quantised._replace(engine=EAGER), two)
    written = apart.traffic_bytes - within.traffic_bytes
    assert written == pytest.approx(4 * SHAPE.linear_parameters, rel=0.02)
    assert within.bytes_moved == apart.bytes_moved


def test_a_single_row_is_multiplied_by_the_codes() -> None:
    quantised = UNMERGED._replace(format="nf4", engine=CAPTURED)
    one, two = (
        per_token(SHAPE, lora(16), quantised, LOAD._replace(sequences=count)) for count in (1, 2)
    )
    written = 2 * LOAD.other_bytes * SHAPE.linear_parameters
    assert one.traffic_bytes < 0.1 * written < written < two.traffic_bytes


def test_a_tenant_with_a_model_of_its_own_takes_a_pass_of_its_own() -> None:
    """Of its own rows: they alone choose the experts that are read, and one alone reads codes."""
    mixtral = catalog.model("mixtral-8x7b").architecture
    for shape, format_ in ((mixtral, "bf16"), (SHAPE, "nf4")):
        merged = Served(format_, "merged", "exact", CAPTURED)
        one, five = (
            per_token(shape, FREE, merged, LOAD._replace(slots=count, sequences=count))
            for count in (1, 5)
        )
        assert seconds(five) == pytest.approx(5 * seconds(one))
        # Of two tenants with two rows each.
        rows = per_token(shape, FREE, merged, LOAD._replace(sequences=2))
        four = per_token(shape, FREE, merged, LOAD._replace(slots=2, sequences=4))
        assert seconds(four) == pytest.approx(2 * seconds(rows))


def test_the_host_is_hidden_where_it_works_ahead() -> None:
    step = per_token(SHAPE, lora(16), UNMERGED._replace(engine=EAGER), LOAD)
    assert seconds(step) == step.host_seconds
    served = per_token(SHAPE, lora(16), UNMERGED._replace(engine=EAGER_SERVER), LOAD)
    assert seconds(served) > served.host_seconds > 10 * CAPTURED.seconds_per_kernel * SHAPE.layers


def test_fast_products_run_at_the_int8_rate() -> None:
    fast = first_token(SHAPE, lora(16), UNMERGED._replace(precision="fast"), LOAD)
    assert fast.fast_flops == pytest.approx(2.0 * 1024 * SHAPE.linear_parameters)
    slow = MEASURED.model_copy(update={"fp32_tflops": 10.0, "int8_tops": 40.0})
    unknown = slow.model_copy(update={"int8_tops": None})
    gained = fast.fast_flops / (rates.FAST_SPEEDUP * 1e13) - fast.fast_flops / 4e13
    assert seconds(fast, unknown) - seconds(fast, slow) == pytest.approx(gained)


def test_training_step_by_hand() -> None:
    """One frozen pass each way over 512 tokens, and an update of every trained number."""
    cost = lora(16)
    work = training_step(SHAPE, cost, 512, 2.0)
    weights = SHAPE.linear_parameters + SHAPE.vocab * SHAPE.hidden
    assert work.flops == pytest.approx(512 * 2 * 2 * weights)
    assert work.adapter_flops == pytest.approx(512 * 3 * 2 * cost.multiplications)
    updated = training_step(SHAPE, cost, 512, 2.0, trained=cost.trainable_parameters + 1000)
    assert updated.traffic_bytes - work.traffic_bytes == pytest.approx(1000 * 4 * ADAMW_PASSES)
    converted = training_step(SHAPE, cost, 512, 2.0, format_="nf4", micro_batches=2)
    bits = (4.127 / 8 + 2 + 2) * 2 * 2 * SHAPE.linear_parameters
    assert converted.traffic_bytes - work.traffic_bytes == pytest.approx(bits, rel=1e-3)
    assert converted.bytes_moved == 2 * work.bytes_moved


@pytest.mark.parametrize(
    ("framework", "adapter_dtype", "own"),
    [
        ("paretune", "fp32", False),
        ("trainer", "fp32", False),
        ("peft", "bf16", False),
        ("peft", "fp32", True),
    ],
)
def test_adapters_compute_in_the_type_of_the_products_where_they_are_cast(
    framework: str, adapter_dtype: str, own: bool
) -> None:
    """Where they are, the rate of fp32 does not matter to them."""
    known = catalog.hardware("a100-80gb")
    times = [
        estimate(
            Case(
                model="llama-3.2-1b",
                method="lora",
                rank=256,
                batch_size=8,
                framework=framework,  # type: ignore[arg-type]
                adapter_dtype=adapter_dtype,  # type: ignore[arg-type]
                hardware=replace(known, fp32_tflops=peak),
            )
        ).training["step_seconds"]
        for peak in (known.fp32_tflops, known.bf16_tflops)
    ]
    assert (times[0] != times[1]) == own


@pytest.mark.parametrize(("format_", "published"), [("bf16", 8210), ("nf4", 8035)])
def test_published_rates_of_adapters_in_bf16_are_near(format_: str, published: int) -> None:
    """torchtune's README: Llama 3.2 3B, rank 64, 2 x 4096 tokens, recomputed, on an A100.

    Its steps are compiled, which takes 1.27 of the rate there.
    """
    linears = ("query", "value", "output")
    case = Case(
        model="llama-3.2-3b",
        method="lora",
        rank=64,
        targets=(*(f"attention.{name}" for name in linears), "mlp.gate", "mlp.up", "mlp.down"),
        format=format_,  # type: ignore[arg-type]
        batch_size=2,
        sequence_length=4096,
        checkpointing="block",
        adapter_dtype="bf16",
        framework="trainer",
        hardware="a100-80gb",
    )
    seconds_each = float(str(estimate(case).training["step_seconds"]))
    assert 2 * 4096 / seconds_each == pytest.approx(published / 1.27, rel=0.1)


def test_scores_that_are_kept_are_read_and_written() -> None:
    """Of 32 layers and heads over 512 tokens: 8 passes in bf16, the softmax in fp32, its cast."""
    run = {"sequence_length": 512.0, "compute": "bf16"}
    flash = training_step(SHAPE, lora(16), 512, 2.0, **run)
    full = training_step(SHAPE, lora(16), 512, 2.0, attention="full", **run)
    scores = 32 * 32 * 512 * 512
    assert full.traffic_bytes - flash.traffic_bytes == pytest.approx(3 * scores * (8 * 2 + 8))
    # And half of their products are masked, not left out.
    assert full.flops - flash.flops == pytest.approx(2 * scores * 2 * 128)


def test_an_update_in_one_kernel_moves_less() -> None:
    """8-bit moments: six passes over fp32 and four bytes, against 24 passes."""
    cost = lora(16)
    plain = training_step(SHAPE, cost, 512, 2.0).traffic_bytes
    numbers = cost.trainable_parameters
    for name, moved in (("adamw8bit", 28), ("paged_adamw8bit", 28), ("sgd", 24), ("galore", 96)):
        found = training_step(SHAPE, cost, 512, 2.0, optimizer=name).traffic_bytes
        assert plain - found == pytest.approx((96 - moved) * numbers)


def test_options_of_a_case_change_its_step() -> None:
    def step(**named: object) -> float:
        case = {"model": "llama-3.2-1b", "hardware": "a100-80gb", "batch_size": 8, **named}
        return estimate(Case.model_validate(case)).figures["training.step_seconds"].value or 0.0

    assert step(attention="full") > 1.2 * step()
    assert step(method="full", optimizer="adamw8bit") < step(method="full")
    # An fp32 number is updated, and has a copy in bf16: 24 x 2 bytes more, and 12 of casts.
    parameters = catalog.model("llama-3.2-1b").architecture.parameters
    masters = step(method="full") - step(method="full", framework="peft")
    assert masters == pytest.approx(60 * parameters / (0.8 * 2.039e12))


def test_recomputing_takes_another_pass() -> None:
    whole = training_step(SHAPE, lora(16), 512, 2.0)
    block = training_step(SHAPE, lora(16), 512, 3.0, recomputes=1.0)
    assert block.flops == pytest.approx(1.5 * whole.flops)
    assert block.traffic_bytes > whole.traffic_bytes
    assert block.host_seconds > whole.host_seconds


def test_experts_that_no_token_reaches_are_not_streamed() -> None:
    routed = tuple(Target(f"e{i}", "experts.up", 64, 64) for i in range(8))
    shape = replace(SHAPE, targets=SHAPE.targets + routed, experts=8, experts_per_token=2)
    none = AdapterCost(0, 0, 0, 0, 0, 0)
    one = per_token(shape, none, UNMERGED, LOAD)
    many = per_token(shape, none, UNMERGED, LOAD._replace(sequences=1000))
    assert many.bytes_moved - one.bytes_moved == pytest.approx(2 * shape.idle_parameters)


def test_an_encoder_reads_once_and_a_decoder_writes() -> None:
    """Flan-T5-XL: 24 blocks of attention and a gated MLP read; 24 with two attentions write."""
    shape = catalog.model("flan-t5-xl").architecture
    width, inner, layers = 2048, 5120, 24
    attention, mlp = 4 * width * width, 3 * width * inner
    encoder, decoder = layers * (attention + mlp), layers * (2 * attention + mlp)
    crossed = layers * 2 * width * width
    assert shape.linear_parameters == encoder + decoder
    none = AdapterCost(0, 0, 0, 0, 0, 0)
    served = UNMERGED._replace(export="merged")
    head = 2 * shape.vocab * width
    prompt = first_token(shape, none, served, LOAD)
    scores = 4 * layers * 1024 * 1024 * width
    read = 2 * 1024 * (encoder + crossed)
    assert prompt.flops == pytest.approx(read + 2 * (decoder - crossed) + scores + head)
    assert prompt.bytes_moved == 2 * shape.parameters
    step = per_token(shape, none, served, LOAD)
    assert step.flops == pytest.approx(2 * (decoder - crossed) + head)
    other = shape.parameters - shape.linear_parameters - shape.vocab * width
    assert step.bytes_moved == 2 * (decoder - crossed + other)
    assert prompt.host_seconds == 2 * step.host_seconds
    # Keys and values of 1,024 tokens that were read and 512 that were written.
    cached = 1536 * 2 * layers * width * 2
    block = 2 * 30 * width + (6 * width + 5 * inner) * 2
    assert step.traffic_bytes == pytest.approx(cached + 0.3 * layers * block)


@pytest.mark.parametrize(
    ("name", "seen"),
    [("llama-3.1-8b", 32 * 0.5), ("bert-base", 12), ("flan-t5-xl", 24 + 24 * 0.5 + 24)],
)
def test_a_token_attends_to_all_of_an_encoder_and_half_of_a_decoder(name: str, seen: float) -> None:
    shape = catalog.model(name).architecture
    none = AdapterCost(0, 0, 0, 0, 0, 0)
    short, long = (training_step(shape, none, 1, 2.0, sequence_length=n) for n in (100, 300))
    width = shape.heads * shape.head_dim
    assert long.flops - short.flops == pytest.approx(2 * 200 * 4 * width * seen)


def test_published_times_are_near() -> None:
    """S-LoRA's serving, LitGPT's decoding, PEFT's training: the script fails beyond its bars."""
    script = Path(__file__).parents[1] / "bench" / "bench_time.py"
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)


def test_served_columns_give_what_numbers_give() -> None:
    costs = [lora(rank) for rank in (4, 16, 64)]
    columns = AdapterCost(*(np.array(column) for column in zip(*costs, strict=True)))
    missing = UNMERGED._replace(miss_rate=0.5, engine=ENGINES["vllm"])
    for measured in (first_token, per_token):
        together = measured(SHAPE, columns, missing, LOAD).seconds(MEASURED, "bf16")
        alone = [seconds(measured(SHAPE, cost, missing, LOAD)) for cost in costs]
        assert together == pytest.approx(alone)
        assert alone == sorted(alone)


def test_columns_give_what_numbers_give() -> None:
    """A search evaluates whole columns of batches and costs."""
    costs = [lora(rank) for rank in (4, 16, 64)]
    columns = AdapterCost(*(np.array(column) for column in zip(*costs, strict=True)))
    tokens, micro = np.array([256, 512, 1024]), np.array([1, 2, 4])
    work = training_step(SHAPE, columns, tokens, 2.0, micro_batches=micro, format_="nf4")
    together = work.seconds(MEASURED, "bf16")
    for i, cost in enumerate(costs):
        alone = training_step(
            SHAPE, cost, int(tokens[i]), 2.0, micro_batches=int(micro[i]), format_="nf4"
        )
        assert together is not None
        assert together[i] == pytest.approx(seconds(alone))


def test_a_runtime_is_assumed_on_devices_that_it_has_not_run_on() -> None:
    """The op has kernels for CPUs alone; a plan for a GPU says so, with figures that do."""
    spec = {
        "model": "smollm2-135m",
        "task": "causal_lm",
        "vram_gib": 16,
        "training": {"hardware": "a100-80gb"},
        "pinned": {"method": "lora", "rank": 8, "format": "bf16"},
    }
    said = "the runtime paretune has run on CPUs only"
    measured = MEASURED.model_dump()
    for serving, assumed in (
        ({"hardware": measured}, True),
        ({"hardware": measured, "runtime": "vllm"}, False),
        ({"hardware": "cpu-2core"}, False),
    ):
        plan = recommend(Spec.model_validate(spec | {"serving": serving}))
        assert any(said in reason for reason in plan.reasons) == assumed
        for key in ("latency.per_token_seconds", "serving.usd_per_million_tokens"):
            figure = plan.figures[key]
            assert not assumed or figure.evidence == "assumed"
        for key in ("serving.memory_bytes", "serving.parts.cache_bytes"):
            assert plan.figures[key].evidence == ("assumed" if assumed else "derived")
            assert (said in plan.figures[key].source) == assumed
        assert (said in plan.figures["latency.per_token_seconds"].source) == assumed


def test_half_precision_is_fp16_where_there_is_no_bf16() -> None:
    """A T4 serves at 65 Tflop/s and an RTX 3060 at 25; a runtime of fp32 stays at 8."""

    def first(name: str, runtime: str) -> float:
        case = {"model": "llama-3.2-1b", "hardware": name, "runtime": runtime, "format": "bf16"}
        key = "latency.first_token_seconds"
        return estimate(Case.model_validate(case)).figures[key].value or 0.0

    assert first("t4", "vllm") < first("rtx-3060", "vllm")
    assert first("t4", "paretune") > 3 * first("t4", "vllm")


def test_a_device_without_bf16_is_named_and_not_unknown() -> None:
    case = {"model": "llama-3.2-1b", "hardware": "t4", "format": "bf16"}
    step = estimate(Case.model_validate(case)).figures["training.step_seconds"]
    assert step.value is None
    assert step.source == "t4 has no bf16 arithmetic"
    single = estimate(Case.model_validate(case | {"compute": "fp32"}))
    assert (single.figures["training.step_seconds"].value or 0.0) > 0


def test_what_rests_on_a_constant_is_not_measured() -> None:
    """Of a device whose rates are all timed: launches, fetched rows and int8 without a rate."""
    work = Work(flops=1e15, bytes_moved=0.0)
    assert work.constants(MEASURED, "bf16") == ()
    launched = work._replace(host_seconds=0.5)
    assert launched.constants(MEASURED, "bf16") == ("the host's seconds per kernel",)
    assert launched._replace(waits=False).constants(MEASURED, "bf16") == ()
    hidden = launched._replace(waits=False, host_seconds=2.0)
    assert hidden.constants(MEASURED, "bf16") == ("the host's seconds per kernel",)
    fetched = work._replace(link_bytes=1.0, fast_flops=1.0)
    assert fetched.constants(MEASURED, "bf16") == (
        "int8 activations at 2 x fp32",
        "rows fetched at 25 GB/s",
    )
    timed = MEASURED.model_copy(update={"int8_tops": 3000.0})
    assert fetched.constants(timed, "bf16") == ("rows fetched at 25 GB/s",)
    for constants, known in (((), "measured"), (("rows fetched at 25 GB/s",), "assumed")):
        assert rates.evidence(MEASURED, constants) == known
    said = rates.source(MEASURED, ("rows fetched at 25 GB/s",))
    assert said.endswith("on the device itself, rows fetched at 25 GB/s (assumed)")


@pytest.mark.parametrize(
    ("runtime", "known"), [("vllm", ("bf16", "fp32")), ("paretune", ("fp32",))]
)
@pytest.mark.parametrize("given", ["bf16", "fp32"])
def test_a_latency_budget_needs_the_peak_that_the_runtime_computes_at(
    runtime: str, known: tuple[str, ...], given: str
) -> None:
    device = {"kind": "gpu", "memory_gib": 24, "bandwidth_gb_per_second": 300}
    serving = {"hardware": device | {f"{given}_tflops": 50}, "runtime": runtime}
    document = {"model": "smollm2-135m", "task": "causal_lm", "vram_gib": 8}
    spec = Spec.model_validate(document | {"serving": serving | {"per_token_ms": 1000}})
    if given in known:
        assert recommend(spec).figures["latency.per_token_seconds"].value is not None
    else:
        with pytest.raises(UsageError, match="bandwidth_gb_per_second and fp32_tflops"):
            recommend(spec)
