"""build: plan + model + data -> artifact.

check -> read data -> capture -> find targets -> for each tenant: insert adapters, quantise the
frozen base, train -> lower -> export -> parity -> publish
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from compiler import adapter as adapters
from compiler import huggingface
from compiler.artifact import check_vacant, verify
from compiler.base_model import DTYPES, Base, captured, load_base, load_module
from compiler.dataset import Dataset, read_datasets
from compiler.export.assemble import assemble
from compiler.graph import Graph
from compiler.manifest import Manifest
from compiler.measured import record
from compiler.request import Request
from compiler.tokenizer import FILES as TEXTS
from compiler.tokenizer import load as load_tokenizer
from compiler.train import Job, Trained, report, train
from compiler.training_graph import Start, start, training_graph
from compiler.workspace import (
    Workspace,
    code_digest,
    exclusively,
    file_digest,
    is_finished,
    open_workspace,
    workspace_folder,
)
from planner.architecture import Architecture, architecture
from planner.builds import check_targets
from planner.catalog import config_digest
from planner.errors import DriftError, ParetuneError, UsageError
from planner.method import Method, buildable_method
from planner.plan import BUILT_TASKS, Candidate, Plan, digest

SPARE_LABELS = 16
"""Rows of a shared classification head: tenants with up to as many labels can join later."""

Say = Callable[[str], None]


def build(request: Request, say: Say) -> Manifest:
    """Train every tenant and publish the artifact; an interrupted build is continued.

    Raises UsageError for bad inputs, DriftError when the plan is for another model, and
    IncompatibleError when the exported graph does not agree with the trained one.
    """
    with _disk_errors(request.out):
        plan = request.plan
        _check(request)
        digests = {tenant: file_digest(path) for tenant, path in request.data.items()}
        base_digest = huggingface.base_digest(request.model)
        identity = _identity(request, base_digest, digests)
        if is_finished(request.out, identity):
            Workspace(workspace_folder(request.out)).remove()
            return verify(request.out)
        check_vacant(request.out, replace=request.replace)
        datasets = read_datasets(plan, request.data, digests, load_tokenizer(request.model))
        _check_vocabulary(request, datasets)
        workspace = open_workspace(request.out, identity, restart=request.restart)
        with exclusively(workspace):
            base = _load(request, datasets, say)
            runs: list[Trained] = []
            trained = _train_all(request, base, base_digest, datasets, workspace, runs, say)
            manifest = assemble(request, base, base_digest, datasets, trained, say)
            workspace.remove()
        record(plan, runs, say)
        return manifest


def _check(request: Request) -> None:
    plan = request.plan
    for tenant, path in request.data.items():
        if not path.is_file():
            raise UsageError(f"there is no data file '{path}' for tenant '{tenant}'")
    shape = _check_model(request)
    chosen = buildable_method(plan.candidate.method)
    _check_candidate(plan.candidate, chosen)
    _check_targets(plan.candidate.targets, shape)
    _check_length(plan.candidate.sequence_length, shape.positions)
    if plan.candidate.format not in chosen.formats:
        raise UsageError(
            f"{chosen.title} does not train on a base in {plan.candidate.format}; formats are "
            f"{', '.join(chosen.formats)}"
        )
    if plan.candidate.export not in chosen.serves:
        raise UsageError(f"{chosen.title} is served {', '.join(chosen.serves)} only")
    if plan.candidate.export == "merged" and len(request.data) != 1:
        raise UsageError(
            f"a merged artifact holds one tenant, but {len(request.data)} are given",
            hint="build once per tenant, or choose an unmerged export",
        )


def _check_model(request: Request) -> Architecture:
    """The model is the plan's, and of a task and family that are built."""
    plan = request.plan
    config = huggingface.read_config(request.model)
    found = config_digest(config)
    if found != plan.model.config_digest:
        raise DriftError(
            f"the plan is for '{plan.model.name}' (config {plan.model.config_digest[:12]}), but "
            f"'{request.model}' is a '{config.get('model_type')}' of config {found[:12]}",
            hint="make a plan from this model's config.json",
        )
    if plan.task not in BUILT_TASKS:
        raise UsageError(f"the compiler does not build the task '{plan.task}' yet")
    shape = architecture(config)
    if shape.unbuilt:
        raise UsageError(
            f"the compiler does not build the family '{shape.model_type}' yet: {shape.unbuilt}",
            hint="`planner models` lists the models it builds",
        )
    return shape


def _check_candidate(candidate: Candidate, chosen: Method) -> None:
    """A method has a rank and an alpha, or it has none."""
    for name, value, wanted in (
        ("rank", candidate.rank, bool(chosen.ranks)),
        ("alpha", candidate.alpha, chosen.scaling is not None),
    ):
        if wanted and value is None:
            raise UsageError(f"{chosen.title} needs a value for candidate.{name}")
        if value is not None and not wanted:
            raise UsageError(
                f"{chosen.title} has no {name}, but candidate.{name} is {value}",
                hint=f"--set candidate.{name}=null",
            )


def _check_targets(named: tuple[str, ...], shape: Architecture) -> None:
    """Before anything is captured or kept, as the config alone says what there is."""
    if not named:
        raise UsageError(
            "candidate.targets names no linear", hint="name a role, all-linear or a module"
        )
    check_targets("candidate.targets", named, shape)


def _check_vocabulary(request: Request, datasets: tuple[Dataset, ...]) -> None:
    size = huggingface.read_config(request.model).get("vocab_size")
    for dataset in datasets:
        examples = (*dataset.train, *dataset.validation)
        largest = max(int(example.input_ids.max()) for example in examples)
        if isinstance(size, int) and largest >= size:
            raise UsageError(
                f"the tokenizer gives id {largest} for '{dataset.tenant}', but the model has "
                f"{size} embeddings",
                hint="use the tokenizer that belongs to the model",
            )


def _check_length(length: int, positions: int) -> None:
    if 0 < positions < length:
        raise UsageError(
            f"candidate.sequence_length is {length}, but the model has {positions} positions"
        )


def _identity(request: Request, base_digest: str, data: Mapping[str, str]) -> dict[str, object]:
    texts = [name for name in TEXTS if (request.model / name).is_file()]
    return {
        "plan": digest(request.plan),
        "base": base_digest,
        "tokenizer": {name: file_digest(request.model / name) for name in texts},
        "data": dict(sorted(data.items())),
        "versions": {name: version(name) for name in ("paretune", "torch", "transformers")},
        "code": code_digest(),
        "threads": torch.get_num_threads(),
    }


def _load(request: Request, datasets: tuple[Dataset, ...], say: Say) -> Base:
    say(f"capturing {request.model}")
    labels = max([SPARE_LABELS, *(len(d.labels) for d in datasets if d.labels)])
    plan = request.plan
    longest = plan.candidate.sequence_length
    base = load_base(request.model, plan.task, plan.candidate.format, labels, longest)
    say(f"found {len(base.targets)} linears: {_roles(base)}")
    return base


def _roles(base: Base) -> str:
    counts: dict[str, int] = {}
    for target in base.targets:
        counts[target.role] = counts.get(target.role, 0) + 1
    return ", ".join(f"{count} {role}" for role, count in counts.items())


def _train_all(
    request: Request,
    base: Base,
    base_digest: str,
    datasets: tuple[Dataset, ...],
    workspace: Workspace,
    runs: list[Trained],
    say: Say,
) -> dict[str, adapters.Adapter]:
    """Every tenant's adapter; those that are finished already are only read, the rest in `runs`."""
    graph: Graph | None = None
    for dataset in datasets:
        for note in dataset.notes:
            say(f"{dataset.tenant}: {note}")
        if workspace.adapter(dataset.tenant).is_file():
            say(f"{dataset.tenant}: trained already")
            continue
        graph = graph or _compute_graph(request, base)
        runs.append(_train(request, base, base_digest, graph, dataset, workspace))
    return {d.tenant: adapters.load(workspace.adapter(d.tenant)) for d in datasets}


def _compute_graph(request: Request, base: Base) -> Graph:
    """The base graph in the plan's compute dtype; a dtype is part of what is captured."""
    dtype = DTYPES[request.plan.candidate.compute]
    if dtype == torch.float32:
        return base.graph
    labels = next((t.out_features for t in base.targets if t.role == "classifier"), 0)
    module = load_module(request.model, request.plan.task, labels).to(dtype)
    return captured(module, request.plan.task, request.plan.candidate.sequence_length)


def _train(
    request: Request,
    base: Base,
    base_digest: str,
    graph: Graph,
    dataset: Dataset,
    workspace: Workspace,
) -> Trained:
    plan = request.plan
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = len(dataset.labels) if dataset.labels else None
    begin = start(base, plan.candidate, labels, plan.training.seed)
    training = training_graph(base, graph, plan.candidate, begin, device)
    job = Job(
        loss_fn=training.loss,
        parameters=training.parameters,
        candidate=plan.candidate,
        training=plan.training,
        train=dataset.train,
        validation=dataset.validation,
        pad_id=0,
        workspace=workspace.training(dataset.tenant),
        learning_rate_multipliers=training.learning_rate_multipliers,
        base_digest=base_digest,
        device=device,
    )
    with report(dataset.tenant, quiet=request.quiet) as progress:
        trained = train(job, progress=progress)
    path = workspace.adapter(dataset.tenant)
    aside = path.with_suffix(".part")
    adapters.save(_adapter(plan, begin, trained, dataset, base_digest), aside)
    aside.replace(path)
    return trained


def _adapter(
    plan: Plan, begin: Start, trained: Trained, dataset: Dataset, base_digest: str
) -> adapters.Adapter:
    """What was trained, with what it started from."""
    tensors = begin.tensors | dict(trained.tensors)
    return adapters.uniform(
        method=plan.candidate.method,
        rank=plan.candidate.rank,
        alpha=plan.candidate.alpha,
        targets=begin.owned.targets,
        tensors={key: value.numpy() for key, value in tensors.items()},
        base_digest=base_digest,
        seed=plan.training.seed,
        labels=dataset.labels,
        template=dataset.template,
    )


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ParetuneError(
            f"no space is left on the disk of '{out}'",
            hint="free some space and run the same command: the build goes on where it was",
        ) from error
