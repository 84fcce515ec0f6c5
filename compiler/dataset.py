"""The data of every tenant, read and checked before anything slow begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.data import Example, Record, encode, pack, read, split
from compiler.manifest import tenant_name
from compiler.tokenizer import Template, Tokenizer
from planner.errors import UsageError
from planner.plan import Plan


@dataclass(frozen=True)
class Dataset:
    """One tenant's examples; `labels` in logit order where the task has classes."""

    tenant: str
    digest: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    labels: tuple[str, ...] | None
    template: Template | None
    notes: tuple[str, ...]


def read_datasets(
    plan: Plan, files: Mapping[str, Path], digests: Mapping[str, str], tokenizer: Tokenizer
) -> tuple[Dataset, ...]:
    """Read and encode every file; raises one UsageError for all bad lines of all files."""
    if not files:
        raise UsageError("no tenant is given", hint="add --data TENANT=FILE.jsonl")
    records = _read_all(plan.task, files)
    length, training = plan.candidate.sequence_length, plan.training
    datasets = []
    for tenant, rows in records.items():
        encoded = encode(rows, tokenizer, length)
        train, validation = split(encoded.examples, training.validation_fraction, training.seed)
        if training.packing and encoded.labels is None:
            train = pack(train, length, seed=training.seed)
        datasets.append(
            Dataset(
                tenant=tenant,
                digest=digests[tenant],
                train=train,
                validation=validation,
                labels=encoded.labels,
                template=encoded.template,
                notes=tuple(encoded.notes()),
            )
        )
    return tuple(datasets)


def _read_all(task: str, files: Mapping[str, Path]) -> dict[str, list[Record]]:
    records, refusals = {}, []
    for tenant, path in files.items():
        try:
            records[tenant_name(tenant)] = read(path, task)
        except UsageError as error:
            refusals.append(error)
    if refusals:
        hint = next((error.hint for error in refusals if error.hint), None)
        raise UsageError("\n".join(map(str, refusals)), hint=hint)
    return records
