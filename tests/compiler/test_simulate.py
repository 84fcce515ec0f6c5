"""The dry run against real steps of the same graph, watched by the same mode, and its command."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from compiler import nf4
from compiler.base_model import DTYPES, Base, captured, frozen_paths
from compiler.cli import main
from compiler.data import Batch
from compiler.graph import attribute
from compiler.passes.expose_hidden import expose_hidden
from compiler.roles import targets
from compiler.simulate import (
    Captured,
    Simulation,
    at_full_depth,
    capture_depths,
    dry_run,
    training_graphs,
)
from compiler.simulate.depth import NotLinear, peaks, peaks_at_depth
from compiler.simulate.kernels import adamw8bit_states
from compiler.simulate.live import KINDS, Segment
from compiler.simulate.model import _module, read_settings
from compiler.simulate.step import Watched, watch
from compiler.training_graph import Placement, on_device, start, training_graph
from planner import Spec, recommend
from planner.documents import dump, load_plan
from planner.method import buildable, method
from planner.plan import Candidate, Training

VOCABULARY, LABELS, LAYERS = 96, 3, 3
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TASKS = {"llama": "causal_lm", "bert": "sequence_classification"}
CPU = torch.device("cpu")


def config(family: str, layers: int = LAYERS) -> dict[str, object]:
    return {**(LLAMA if family == "llama" else BERT), "num_hidden_layers": layers}


@cache
def capture(family: str, compute: str, layers: int = LAYERS) -> Captured:
    return capture_depths(config(family, layers), TASKS[family], LABELS, compute, 32)


@cache
def real_base(family: str, compute: str, weight_format: str) -> Base:
    torch.manual_seed(0)
    module = _module(read_settings(config(family)), TASKS[family], LABELS)
    module = module.eval().requires_grad_(requires_grad=False).to(DTYPES[compute])
    graph = captured(module, TASKS[family], 32)
    found = targets(graph)
    paths = frozen_paths(graph, found) if weight_format == "nf4" else ()
    quantized = {path: nf4.quantize(attribute(graph.module, path)) for path in paths}
    return Base(TASKS[family], weight_format, graph, found, quantized)


def candidate(name: str, **changes: object) -> Candidate:
    chosen = method(name)
    fields = {
        "method": name,
        "rank": 4 if chosen.ranks else None,
        "alpha": 8.0 if chosen.scaling else None,
        "targets": ("attention.key", "mlp.down") if name == "ia3" else ("all-linear",),
        "format": "fp32",
        "compute": "fp32",
        "batch_size": 2,
        "sequence_length": 24,
        "learning_rate": 1e-3,
    }
    return Candidate.model_validate(fields | changes)


def simulated(wanted: Candidate, family: str = "llama", layers: int = LAYERS, **how) -> Simulation:
    found = capture(family, wanted.compute, layers)
    gpu = how.pop("gpu", False)
    graphs = training_graphs(found, wanted, gpu=gpu)
    return dry_run(found, graphs, wanted, Training(), gpu=gpu, **how)


def really_taken(wanted: Candidate, family: str) -> list[Segment]:
    """The same step on a CPU with real weights, ids and labels."""
    base = real_base(family, wanted.compute, wanted.format)
    begin = start(base, wanted, LABELS if family == "bert" else None, seed=0)
    training = training_graph(base, base.graph, wanted, begin, CPU)
    shape = (wanted.batch_size, wanted.sequence_length)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=shape)
    labels = ids if family == "llama" else ids[:, 0] % LABELS
    batch = Batch(ids, labels, np.ones(shape, np.int64))
    return watch(Watched(training, wanted, Training(), CPU, gpu=False), batch)


STEPS = [
    ("llama", "lora", {}),
    ("llama", "lora", {"gradient_accumulation": 2}),
    ("llama", "lora", {"compute": "bf16", "format": "bf16", "checkpointing": "block"}),
    ("llama", "lora", {"format": "nf4", "gradient_accumulation": 3}),
    ("llama", "dora", {"compute": "bf16", "format": "nf4", "checkpointing": "block"}),
    ("llama", "ia3", {"compute": "bf16", "checkpointing": "block"}),
    ("llama", "vera", {}),
    ("llama", "pissa", {}),
    ("llama", "bitfit", {}),
    ("llama", "full", {}),
    ("llama", "full", {"compute": "bf16", "checkpointing": "block", "gradient_accumulation": 2}),
    ("bert", "lora", {}),
    ("bert", "full", {"gradient_accumulation": 2}),
]


@pytest.mark.parametrize(("family", "name", "changes"), STEPS, ids=lambda value: str(value))
def test_a_dry_run_is_a_real_step_byte_for_byte(family, name, changes) -> None:
    wanted = candidate(name, **changes)
    real = peaks(really_taken(wanted, family))
    found = simulated(wanted, family)
    assert found.peak_allocated_bytes == max(peak.bytes for peak in real)
    assert found.by_kind == max(real, key=lambda peak: peak.bytes).by_kind
    for peak in real:
        assert found.phases[peak.phase] >= peak.bytes


@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_layers_are_extended_exactly(name: str, checkpointing: str) -> None:
    wanted = candidate(name, checkpointing=checkpointing, gradient_accumulation=2)
    extended = simulated(wanted, layers=7)
    assert extended.simulated_layers == (3, 4, 5)
    whole = at_full_depth(capture("llama", "fp32", 7))
    graphs = training_graphs(whole, wanted, gpu=False)
    exact = dry_run(whole, graphs, wanted, Training(), gpu=False)
    assert exact.simulated_layers == (7,)
    assert extended.by_kind == exact.by_kind
    assert extended.phases == exact.phases


@pytest.mark.parametrize("name", sorted(buildable()))
def test_recomputed_blocks_keep_less(name: str) -> None:
    kept = simulated(candidate(name, compute="bf16"))
    recomputed = simulated(candidate(name, compute="bf16", checkpointing="block"))
    assert recomputed.by_kind["activations"] < kept.by_kind["activations"]


def test_gradients_live_through_the_next_micro_batch() -> None:
    once, twice = (simulated(candidate("lora", gradient_accumulation=n)) for n in (1, 2))
    assert once.by_kind["gradients"] == 0
    assert twice.by_kind["gradients"] == twice.by_kind["adapters"]
    assert twice.by_kind["optimizer"] >= 2 * twice.by_kind["adapters"]


def test_a_gpu_keeps_no_attention_scores() -> None:
    """Without them, twice the tokens keep twice the bytes; scores would keep four times."""
    short, long = (
        simulated(candidate("lora", sequence_length=n), gpu=True).by_kind["activations"]
        for n in (512, 1024)
    )
    assert long < 2.01 * short


def test_a_full_loss_holds_all_logits() -> None:
    """Their fp32 log-softmax and its gradient are there when the backward pass begins."""
    wanted = candidate("lora", compute="bf16", batch_size=8, sequence_length=32)
    wide = {**config("llama", 1), "vocab_size": 4096}
    found = capture_depths(wide, "causal_lm", LABELS, "bf16", 32)
    graphs = training_graphs(found, wanted, gpu=True)
    full, fused = (
        dry_run(found, graphs, wanted, Training(), gpu=True, loss=loss).phases["backward"]
        for loss in ("full", "chunked")
    )
    assert full >= fused + 8 * 32 * 4096 * 8


def test_a_tied_head_is_on_a_device_once() -> None:
    graph = real_base("llama", "fp32", "fp32").graph
    headless = expose_hidden(graph.copied())
    placement = Placement(torch.device("meta"))
    placed = on_device(headless.graph, placement)
    head = placement.placed(attribute(graph.module, headless.weight))
    (table,) = [p for p in placed.module.parameters() if p.shape == (VOCABULARY, 64)]
    assert table.untyped_storage() is head.untyped_storage()


def test_8bit_states_are_those_of_bitsandbytes() -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    for size in (100, 4096, 70_000):
        parameter = torch.nn.Parameter(torch.zeros(size))
        theirs = optim.AdamW8bit([parameter], lr=0.0)
        theirs.init_state(theirs.param_groups[0], parameter, 0, 0)
        stored = {
            name: value.nbytes
            for name, value in theirs.state[parameter].items()
            if isinstance(value, torch.Tensor) and not name.startswith("qmap")
        }
        assert {n: v.nbytes for n, v in adamw8bit_states(parameter).items()} == stored


def steps_of(rows: list[list[int]]) -> list[Segment]:
    width = len(KINDS) - 1
    return [Segment("forward", 1, [(value, *(0,) * width) for value in row]) for row in rows]


def test_depths_that_do_not_line_up_are_refused() -> None:
    straight = [[step] for step in steps_of([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]])]
    (peak,) = peaks_at_depth((3, 4, 5), straight, 10)
    assert peak.bytes == 10
    bent = [[step] for step in steps_of([[1, 2, 3], [1, 9, 3, 4], [1, 5, 3, 4, 5]])]
    with pytest.raises(NotLinear):
        peaks_at_depth((3, 4, 5), bent, 10)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulate")
    spec = {"model": LLAMA, "task": "causal_lm", "vram_gib": 8}
    spec["pinned"] = {"sequence_length": 32, "method": "lora"}
    path = folder / "plan.json"
    path.write_text(dump(recommend(Spec.model_validate(spec))), "utf-8")
    return path


def test_the_command_reports_and_writes_the_figure(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "with.json"
    result = CliRunner().invoke(main, ["simulate", str(plan), "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["device"] == "gpu"
    figure = load_plan(out).figures["training.simulated_peak_allocated_bytes"]
    assert figure.value == document["peak_allocated_bytes"] == sum(document["by_kind"].values())
    assert figure.evidence == "derived"
    assert "dry run" in figure.source


def test_another_model_than_the_planned_one_is_refused(plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text(json.dumps(config("llama", 4)), "utf-8")
    result = CliRunner().invoke(main, ["simulate", str(plan), "--model", str(other)])
    assert result.exit_code == 5
    assert "is of config" in result.stderr
