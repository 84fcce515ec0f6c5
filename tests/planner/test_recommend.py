"""The choices experts would make, on real shapes."""

import pytest

from planner import Plan, Spec, catalog, recommend
from planner.documents import load_spec
from planner.errors import InfeasibleError, UsageError
from planner.evaluate import search
from planner.plan import BUILT_TASKS
from planner.quality import TIE_POINTS, claims, evidence
from planner.relaxations import applied, nearest
from planner.resolve import resolve
from planner.runtime import RUNTIMES, limits_of
from planner.scenario import GIB
from planner.spec import Pinned, Runtime

EXAMPLES = catalog.specs_folder() / "examples"
FEASIBLE = [name for name in catalog.names("examples") if not name.startswith("infeasible")]


def plan_of(name: str, *overrides: str) -> Plan:
    spec = load_spec(EXAMPLES / f"{name}.json", overrides)
    return recommend(spec, unbuildable=spec.task not in BUILT_TASKS)


def test_demo_is_plain_lora_on_an_fp32_base() -> None:
    plan = plan_of("smollm2-tenants")
    chosen = plan.candidate
    assert (chosen.method, chosen.rank, chosen.alpha) == ("lora", 16, 32.0)
    assert (chosen.targets, chosen.format, chosen.export) == (("all-linear",), "fp32", "unmerged")
    assert (chosen.batch_size, chosen.gradient_accumulation) == (8, 1)
    assert chosen.sequence_length <= 256
    assert 2e-4 <= chosen.learning_rate <= 1e-3
    assert plan.training.max_steps == 24


def test_a_small_serving_budget_leads_the_demo_to_nf4() -> None:
    plan = plan_of("smollm2-tenants-nf4")
    assert plan.candidate.format == "nf4"
    # Perplexity rises by 30 % on this model, so the loss is far outside the noise.
    points = plan.figures["quality.difference_points"].value
    assert points is not None
    assert points < -2 * TIE_POINTS


def test_three_classifiers_share_one_fp32_encoder() -> None:
    chosen = plan_of("minilm-classifiers").candidate
    assert (chosen.method, chosen.rank, chosen.export) == ("lora", 16, "unmerged")
    assert chosen.format == "fp32"
    assert 5e-4 <= chosen.learning_rate <= 1e-3


def test_8b_on_24_gb_is_qlora_on_all_linears() -> None:
    chosen = plan_of("llama-3.1-8b-24gb").candidate
    assert (chosen.method, chosen.format, chosen.targets) == ("qlora", "nf4", ("all-linear",))
    assert chosen.learning_rate == 2e-4


def test_70b_on_48_gb_is_qlora() -> None:
    chosen = plan_of("llama-3.1-70b-48gb").candidate
    assert (chosen.method, chosen.checkpointing) == ("qlora", "block")


def test_much_code_and_quality_first_is_no_small_rank() -> None:
    chosen = plan_of("llama-2-7b-code").candidate
    assert chosen.method == "full" or (chosen.rank or 0) >= 64


def test_storage_first_with_many_tenants_takes_few_parameters() -> None:
    plan = plan_of(
        "mistral-500-tenants", "priority=storage", "serving.tenants=100000", "family=style"
    )
    adapter = plan.figures["adapter_bytes"].value
    assert adapter is not None
    assert adapter < 10e6


@pytest.mark.parametrize("name", FEASIBLE)
def test_every_figure_is_inside_its_band_and_its_budget(name: str) -> None:
    plan = plan_of(name)
    for key, figure in plan.figures.items():
        assert figure.source, key
        if figure.low is not None and figure.value is not None and figure.high is not None:
            assert figure.low <= figure.value <= figure.high, key
    required = plan.figures["training.required_bytes"].value
    assert required is not None
    assert required <= plan.spec.vram_gib * GIB
    known = set(claims()) | {row["id"] for row in evidence()}
    assert set(plan.evidence_ids) <= known
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("name", FEASIBLE)
def test_every_method_not_chosen_is_accounted_for(name: str) -> None:
    plan = plan_of(name)
    text = " ".join(r.candidate for r in plan.rejections)
    for other in ("lora", "dora", "vera", "ia3", "full"):
        assert other == plan.candidate.method or other in text
    assert len(plan.rejections) < 60
    assert all(r.reason.startswith("Because ") for r in plan.rejections)


INFEASIBLE: list[dict[str, object]] = [
    {"vram_gib": 6},
    {"vram_gib": 24, "serving": {"hardware": "l4", "per_token_ms": 10}},
    {"vram_gib": 18, "pinned": {"method": "dora", "format": "bf16", "sequence_length": 8192}},
    {"vram_gib": 24, "serving": {"tenants": 400, "context_length": 4096}},
    {"vram_gib": 24, "serving": {"concurrency": 100, "context_length": 4096}},
    {"vram_gib": 24, "serving": {"hardware": "l4", "memory_gib": 5}},
    {"vram_gib": 24, "pinned": {"method": "qlora", "format": "fp32"}},
    {
        "vram_gib": 24,
        "serving": {"runtime": "vllm"},
        "pinned": {"export": "unmerged", "method": "dora"},
    },
    # Training and serving memory are both too small, so two changes go together.
    {
        "model": "smollm2-135m",
        "vram_gib": 0.5,
        "training": {"hardware": "l4"},
        "serving": {"hardware": "l4", "tenants": 20, "memory_gib": 1},
        "pinned": {"rank": 64},
    },
    # Memory and time are both too little, and so are a pin and memory.
    {
        "vram_gib": 80,
        "serving": {"hardware": "rtx-4090", "first_token_ms": 10, "memory_gib": 1},
    },
    {
        "vram_gib": 24,
        "serving": {"runtime": "lorax", "memory_gib": 5},
        "pinned": {"precision": "fast"},
    },
    {
        "model": "phi-2",
        "vram_gib": 80,
        "training": {"hardware": "a100-80gb"},
        "serving": {"tenants": 1000, "runtime": "onnxruntime", "per_token_ms": 1e-6},
    },
    # The runtime loads neither of two pins.
    {
        "vram_gib": 80,
        "serving": {"runtime": "onnxruntime"},
        "pinned": {"export": "unmerged", "precision": "fast", "format": "fp32"},
    },
]


@pytest.mark.parametrize("fields", INFEASIBLE, ids=str)
def test_every_relaxation_is_true(fields: dict[str, object]) -> None:
    spec = Spec.model_validate({"model": "llama-3.1-8b", "task": "causal_lm"} | fields)
    scenario = resolve(spec)
    with pytest.raises(InfeasibleError) as raised:
        recommend(spec)
    offered = list(nearest(scenario, search(scenario)))
    assert raised.value.relaxations == tuple(relaxation for relaxation, _ in offered)
    assert 1 <= len(offered) <= 3
    for change, relaxed in offered:
        assert change.text in str(raised.value.hint)
        assert recommend(relaxed).candidate


def test_a_classifier_s_requests_are_as_long_as_its_examples() -> None:
    document = {"model": "bert-base", "task": "sequence_classification", "vram_gib": 15}
    for serving, tokens in (({}, 80), ({"context_length": 64}, 64), ({"prompt_tokens": 9}, 9)):
        spec = Spec.model_validate({**document, "data": {"mean_tokens": 80}, "serving": serving})
        assert resolve(spec).prompt_tokens == tokens


def test_a_classifier_is_not_offered_a_context_below_its_requests() -> None:
    spec = Spec.model_validate(
        {
            "model": "bert-base",
            "task": "sequence_classification",
            "vram_gib": 15,
            "training": {"hardware": "t4"},
            "serving": {"hardware": "cpu-16core", "first_token_ms": 10},
            "data": {"mean_tokens": 80},
        }
    )
    with pytest.raises(InfeasibleError) as raised:
        recommend(spec)
    assert "context" not in str(raised.value.hint)


def test_more_of_two_memories_is_offered_before_a_smaller_model() -> None:
    spec = Spec.model_validate(
        {
            "model": "llama-3.1-70b",
            "task": "causal_lm",
            "vram_gib": 40,
            "training": {"hardware": "a100-80gb"},
            "serving": {"hardware": "l40s", "concurrency": 8},
        }
    )
    with pytest.raises(InfeasibleError) as raised:
        recommend(spec)
    assert {"vram_gib", "serving.memory_gib"} <= set(raised.value.relaxations[0].updates)


def test_relaxations_are_of_the_methods_that_are_weighed() -> None:
    """A method that the compiler lacks has them too where it is asked for."""
    spec = Spec.model_validate(
        {
            "model": "llama-3.1-8b",
            "task": "causal_lm",
            "vram_gib": 4,
            "pinned": {"method": "houlsby", "format": "nf4"},
        }
    )
    with pytest.raises(InfeasibleError) as raised:
        recommend(spec, unbuildable=True)
    assert raised.value.relaxations
    for change in raised.value.relaxations:
        relaxed = applied(spec, change)
        assert relaxed is not None
        assert recommend(relaxed, unbuildable=True).candidate


@pytest.mark.parametrize(
    ("pinned", "value"), [("rank", 16), ("alpha", 8.0), ("targets", ("q_proj",))]
)
def test_what_is_pinned_is_kept(pinned: str, value: object) -> None:
    """Also where the best has nothing of the kind: full fine-tuning is the choice without pins."""
    spec = load_spec(EXAMPLES / "precision-critical.json")
    assert recommend(spec).candidate.method == "full"
    kept = recommend(spec.model_copy(update={"pinned": Pinned.model_validate({pinned: value})}))
    assert getattr(kept.candidate, pinned) == value
    refused = {found.candidate: found.reason for found in kept.rejections}
    assert refused["full"] == f"Because it has no {pinned} and the spec pins it"


def test_packing_fills_rows_of_which_there_are_fewer() -> None:
    """Padded to the longest of a batch, about twice the mean, half of the tokens are none."""
    document = {
        "model": "llama-3.1-8b",
        "task": "causal_lm",
        "vram_gib": 24,
        "data": {"examples": 8000, "mean_tokens": 256},
        "pinned": {"method": "qlora", "rank": 16, "sequence_length": 1024, "batch_size": 2},
    }
    padded, packed = (
        recommend(
            Spec.model_validate({**document, "training": {"hardware": "l4", "packing": packing}})
        ).figures
        for packing in (False, True)
    )

    def ratio(key: str) -> float:
        return (packed[key].value or 0) / (padded[key].value or 1)

    # Twice the tokens, and what a pass takes whatever its tokens.
    assert 1.6 < ratio("training.step_seconds") < 2
    assert ratio("training.total_seconds") == pytest.approx(ratio("training.step_seconds") / 4)
    assert ratio("training.peak_allocated_bytes") == 1


def test_the_total_is_of_all_the_steps_that_are_asked_for() -> None:
    """As compiler/train/loop.py takes them, whatever the epochs come to."""
    fields: dict[str, object] = {
        "model": "smollm2-135m",
        "task": "causal_lm",
        "vram_gib": 16,
        "training": {"hardware": "l4", "max_steps": 1000},
        "data": {"examples": 80},
    }
    figures = recommend(Spec.model_validate(fields)).figures
    step = figures["training.step_seconds"].value
    total = figures["training.total_seconds"]
    assert step is not None
    assert total.value == pytest.approx(1000 * step)
    assert total.source.endswith("80 examples, 1,000 steps")


def test_the_offered_memory_is_the_least_that_suffices() -> None:
    spec = Spec(model="llama-3.1-8b", task="causal_lm", vram_gib=6)
    with pytest.raises(InfeasibleError, match=r"needs .* for training memory") as raised:
        recommend(spec)
    assert "3 GiB more VRAM (9 GiB)" in str(raised.value.hint)
    with pytest.raises(InfeasibleError):
        recommend(spec.model_copy(update={"vram_gib": 8}))


def test_targets_that_a_method_lacks_leave_the_others_open() -> None:
    plan = recommend(
        Spec.model_validate(
            {
                "model": "mixtral-8x7b",
                "task": "causal_lm",
                "vram_gib": 100,
                "pinned": {"targets": ["experts.up"]},
            }
        ),
        unbuildable=True,
    )
    assert plan.candidate.targets == ("experts.up",)
    assert any(r.candidate == "ia3" and r.constraint == "targets" for r in plan.rejections)


def test_a_head_is_adapted_where_it_is_named() -> None:
    plan = recommend(
        Spec.model_validate(
            {
                "model": "llama-3.1-8b",
                "task": "causal_lm",
                "vram_gib": 40,
                "pinned": {"targets": ["all-linear", "lm_head"], "method": "lora", "rank": 8},
            }
        ),
        unbuildable=True,
    )
    blocks = 8 * 32 * (4096 * 2 * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3)
    assert plan.figures["trainable_parameters"].value == blocks + 8 * (4096 + 128256)


@pytest.mark.parametrize("target", ["lm_head", "head"])
def test_a_target_that_the_compiler_lacks_is_refused(target: str) -> None:
    spec = Spec.model_validate(
        {
            "model": "llama-3.1-8b",
            "task": "causal_lm",
            "vram_gib": 40,
            "pinned": {"targets": ["all-linear", target]},
        }
    )
    with pytest.raises(UsageError, match=f"does not adapt '{target}' yet, whose role is head"):
        recommend(spec)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_plan_asks_a_runtime_for_more_than_it_loads(runtime: Runtime) -> None:
    limits = limits_of(runtime, "gpu")
    spec = Spec.model_validate(
        {
            "model": "smollm2-135m",
            "task": "causal_lm",
            "vram_gib": 16,
            "serving": {"runtime": runtime},
        }
    )
    for found in search(resolve(spec)).candidates:
        assert found.form.format in limits.formats
        assert found.form.export in limits.exports
        if limits.pairs_only and found.form.export == "unmerged":
            assert found.adapter.method.name not in ("dora", "vera", "ia3")


@pytest.mark.parametrize(
    ("model", "task", "refusing"),
    [
        ("bert-base", "sequence_classification", {"onnxruntime-genai", "lorax", "llama.cpp"}),
        ("t5-base", "seq2seq_lm", {"onnxruntime-genai", "lorax", "vllm"}),
        ("vit-base", "image_classification", {"onnxruntime-genai", "lorax", "llama.cpp", "vllm"}),
        ("smollm2-135m", "causal_lm", set()),
    ],
)
def test_a_runtime_is_asked_for_no_task_that_it_does_not_serve(
    model: str, task: str, refusing: set[str]
) -> None:
    for runtime in RUNTIMES:
        spec = Spec.model_validate(
            {"model": model, "task": task, "vram_gib": 16, "serving": {"runtime": runtime}}
        )
        if runtime not in refusing:
            assert resolve(spec)
            continue
        with pytest.raises(UsageError, match=f"runtime {runtime} does not serve .*{task}") as error:
            resolve(spec)
        assert "paretune" in str(error.value.hint)


@pytest.mark.parametrize(
    ("runtime", "model", "able"),
    [
        ("lorax", "qwen3-0.6b", "paretune or onnxruntime or onnxruntime-genai or vllm or llama"),
        ("lorax", "stablelm-2-1.6b", "paretune or onnxruntime or vllm or llama.cpp"),
        ("onnxruntime-genai", "gpt2", "paretune or onnxruntime or vllm or lorax or llama.cpp"),
        ("llama.cpp", "opt-1.3b", "paretune or onnxruntime or vllm or lorax"),
    ],
)
def test_a_runtime_is_asked_for_no_family_that_it_does_not_load(
    runtime: str, model: str, able: str
) -> None:
    document = {"model": model, "task": "causal_lm", "vram_gib": 24}
    spec = Spec.model_validate({**document, "serving": {"runtime": runtime}})
    with pytest.raises(UsageError, match=f"{runtime} does not serve .*causal_lm' with") as error:
        resolve(spec)
    assert f"use serving.runtime {able}" in str(error.value.hint)


@pytest.mark.parametrize(
    ("runtime", "model"),
    [
        ("vllm", "gpt2"),
        ("vllm", "pythia-160m"),
        ("vllm", "stablelm-2-1.6b"),
        ("lorax", "pythia-160m"),
        ("llama.cpp", "gpt2"),
    ],
)
def test_a_family_whose_adapters_a_runtime_does_not_load_is_served_merged(
    runtime: str, model: str
) -> None:
    document = {"model": model, "task": "causal_lm", "vram_gib": 24, "training": {"hardware": "l4"}}
    spec = Spec.model_validate({**document, "serving": {"runtime": runtime, "tenants": 2}})
    plan = recommend(spec)
    assert plan.candidate.export == "merged"
    reasons = [r.reason for r in plan.rejections]
    assert any("loads no adapters of the family" in reason for reason in reasons)


@pytest.mark.parametrize(("rank", "exports"), [(512, {"unmerged", "merged"}), (1024, {"merged"})])
def test_vllm_loads_pairs_to_rank_512(rank: int, exports: set[str]) -> None:
    document = {
        "model": "smollm2-1.7b",
        "task": "causal_lm",
        "vram_gib": 79,
        "training": {"hardware": "a100-80gb"},
        "serving": {"runtime": "vllm"},
        "pinned": {"method": "lora", "rank": rank},
    }
    found = search(resolve(Spec.model_validate(document))).candidates
    assert {candidate.form.export for candidate in found} == exports


@pytest.mark.parametrize(
    ("runtime", "exports"), [("vllm", {"unmerged", "merged"}), ("llama.cpp", {"merged"})]
)
def test_a_runtime_that_scales_by_the_rank_alone_is_given_no_rslora(
    runtime: str, exports: set[str]
) -> None:
    document = {
        "model": "smollm2-135m",
        "task": "causal_lm",
        "vram_gib": 16,
        "serving": {"runtime": runtime},
        "pinned": {"method": "rslora"},
    }
    found = search(resolve(Spec.model_validate(document))).candidates
    assert {candidate.form.export for candidate in found} == exports


@pytest.mark.parametrize(("runtime", "format_"), [("vllm", "bf16"), ("paretune", "fp32")])
def test_a_device_without_bf16_trains_a_dense_base_that_the_runtime_loads(
    runtime: str, format_: str
) -> None:
    """4 bits cost a model of 0.1B more than 16 that a T4 widens at every use."""
    document = {
        "model": "smollm2-135m",
        "task": "causal_lm",
        "vram_gib": 15,
        "training": {"hardware": "t4"},
        "serving": {"runtime": runtime},
    }
    assert recommend(Spec.model_validate(document)).candidate.format == format_


def test_a_runtime_without_adapters_for_classifiers_gets_them_merged() -> None:
    document = {
        "model": "bert-base",
        "task": "sequence_classification",
        "vram_gib": 22,
        "training": {"hardware": "l4"},
        "serving": {"runtime": "vllm", "tenants": 3},
    }
    plan = recommend(Spec.model_validate(document))
    assert plan.candidate.export == "merged"
    reasons = {r.candidate: r.reason for r in plan.rejections}
    assert "loads no adapters for the task" in reasons["lora, unmerged"]
