"""The data of every tenant, read and checked before anything slow begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.data import Example, encode, pack, read, split
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
    """Read and encode every file; raises one UsageError for all of a file's bad lines."""
    records = {tenant_name(tenant): read(path, plan.task) for tenant, path in files.items()}
    if not records:
        raise UsageError("no tenant is given", hint="add --data TENANT=FILE.jsonl")
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
