"""Plan + config -> the peak of one training step, from fake tensors at a few depths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from compiler.base_model import CAUSAL_LM
from compiler.graph import Graph
from compiler.simulate.depth import NotLinear, Peak, peaks, peaks_at_depth
from compiler.simulate.kernels import cpu_attention, gpu_attention, use_attention
from compiler.simulate.model import (
    META,
    at_depth,
    fake_base,
    fake_graph,
    fake_start,
    layer_lists,
    meta_graph,
    read_settings,
)
from compiler.simulate.step import Watched, example_batch, watch
from compiler.training_graph import TrainingGraph, training_graph
from planner import catalog
from planner.plan import Candidate, Figure, Plan, Training

LEAST_PERIODS = 3
"""The first layer, the last one and one between them."""
DEPTHS = 3
"""Two give a line, the third proves it."""
DEFAULT_LABELS = 2


@dataclass(frozen=True)
class Captured:
    """A model's graphs by depth, in one compute dtype; candidates that share it share these."""

    settings: PreTrainedConfig
    task: str
    compute: str
    labels: int
    longest: int
    graphs: Mapping[int, Graph]

    @property
    def layers(self) -> int:
        return int(self.settings.num_hidden_layers)


@dataclass(frozen=True)
class Simulation:
    """Bytes of the peak, when it is, and what it is made of; `phases` holds each phase's peak."""

    peak_allocated_bytes: int
    phase: str
    micro_batch: int
    by_kind: Mapping[str, int]
    phases: Mapping[str, int]
    device: str
    layers: int
    simulated_layers: tuple[int, ...]

    @property
    def source(self) -> str:
        """How the number came about, in one sentence."""
        method = f"all {self.layers} layers"
        if self.simulated_layers != (self.layers,):
            depths = ", ".join(map(str, self.simulated_layers))
            method = f"{depths} of {self.layers} identical layers, extended exactly"
        kernels = "flash attention's" if self.device == "gpu" else "the CPU's"
        return (
            "dry run of the compiler's training step on fake tensors: live storages of "
            f"{method}, {kernels} allocations"
        )

    def figure(self) -> Figure:
        return Figure(
            value=float(self.peak_allocated_bytes), evidence="derived", source=self.source
        )


def simulate(plan: Plan, config: Mapping[str, object] | None = None) -> Simulation:
    """The peak of the plan's training step on its training hardware's kind of device.

    `config` is the model's config.json, by default the one the plan's spec names. Raises UsageError
    or IncompatibleError for a model that a build could not capture.
    """
    if config is None:
        config = catalog.model(plan.spec.model).config
    candidate, hardware = plan.candidate, plan.spec.training.hardware
    gpu = hardware is None or catalog.hardware(hardware).kind == "gpu"
    labels = plan.spec.data.labels or DEFAULT_LABELS
    captured = capture_depths(
        config, plan.task, labels, candidate.compute, candidate.sequence_length
    )
    graphs = training_graphs(captured, candidate, gpu=gpu)
    return dry_run(captured, graphs, candidate, plan.training, gpu=gpu)


def capture_depths(
    config: Mapping[str, object], task: str, labels: int, compute: str, longest: int
) -> Captured:
    """Capture the model at the depths that a dry run needs."""
    settings = read_settings(config)
    graphs = {
        depth: fake_graph(at_depth(settings, depth), task, labels, compute, longest)
        for depth in _depths(settings)
    }
    return Captured(settings, task, compute, labels, longest, graphs)


def training_graphs(
    captured: Captured, candidate: Candidate, *, gpu: bool
) -> dict[int, TrainingGraph]:
    """The candidate's training graph at every captured depth, on the meta device.

    They serve every batch size, sequence length and accumulation.
    """
    labels = None if captured.task == CAUSAL_LM else captured.labels
    graphs = {}
    for depth, graph in captured.graphs.items():
        begin = fake_start(fake_base(graph, captured.task, candidate.format), candidate, labels)
        shapes = meta_graph(graph)
        base = fake_base(shapes, captured.task, candidate.format)
        graphs[depth] = training_graph(base, shapes, candidate, begin, META)
        use_attention(graphs[depth].graph.module, gpu_attention if gpu else cpu_attention)
    return graphs


def dry_run(
    captured: Captured,
    graphs: Mapping[int, TrainingGraph],
    candidate: Candidate,
    training: Training,
    *,
    gpu: bool,
    loss: str = "chunked",
) -> Simulation:
    """One candidate's peak; a model whose layers turn out to differ is run at its full depth."""
    batch = example_batch(candidate, causal=captured.task == CAUSAL_LM)
    steps = [
        watch(Watched(graph, candidate, training, META, gpu, loss), batch)
        for graph in graphs.values()
    ]
    depths, layers = tuple(graphs), captured.layers
    if depths == (layers,):
        return _simulation(peaks(steps[0]), layers, depths, gpu=gpu)
    try:
        found = peaks_at_depth(depths, steps, layers)
    except NotLinear:
        whole = at_full_depth(captured)
        graphs = training_graphs(whole, candidate, gpu=gpu)
        return dry_run(whole, graphs, candidate, training, gpu=gpu, loss=loss)
    return _simulation(found, layers, depths, gpu=gpu)


def _depths(settings: PreTrainedConfig) -> tuple[int, ...]:
    """Three depths one period apart that end as the model does, or the model's own."""
    layers = int(settings.num_hidden_layers)
    period = _period(list(layer_lists(settings).values()), layers)
    first = LEAST_PERIODS * period + (layers - LEAST_PERIODS * period) % period
    depths = tuple(first + i * period for i in range(DEPTHS))
    return depths if depths[-1] < layers else (layers,)


def _period(lists: Sequence[Sequence[object]], layers: int) -> int:
    """After how many layers the lists repeat themselves."""
    return next(
        period
        for period in range(1, layers + 1)
        if all(list(kinds[period:]) == list(kinds[:-period]) for kinds in lists)
    )


def at_full_depth(captured: Captured) -> Captured:
    """The same model captured at its own depth, which takes as long as a build's capture."""
    settings, layers = captured.settings, captured.layers
    graph = fake_graph(settings, captured.task, captured.labels, captured.compute, captured.longest)
    return replace(captured, graphs={layers: graph})


def _simulation(
    found: Sequence[Peak], layers: int, depths: tuple[int, ...], *, gpu: bool
) -> Simulation:
    highest = max(found, key=lambda peak: peak.bytes)
    phases: dict[str, int] = {}
    for peak in found:
        phases[peak.phase] = max(peak.bytes, phases.get(peak.phase, 0))
    return Simulation(
        peak_allocated_bytes=highest.bytes,
        phase=highest.phase,
        micro_batch=highest.micro_batch,
        by_kind=highest.by_kind,
        phases=phases,
        device="gpu" if gpu else "cpu",
        layers=layers,
        simulated_layers=depths,
    )
