"""A session: one base model in memory, any mix of its tenants in every batch.

Needs numpy, ONNX Runtime and tokenizers; neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from compiler import artifact, tokenizer
from compiler.adapter import Adapter
from compiler.engine import Array, Engine, library_path
from compiler.evaluation import Evaluation, TokenSequence, evaluate
from compiler.generation import (
    Continuation,
    Floats,
    Integers,
    Sampling,
    check_sampling,
    generate,
    pad_right,
    softmax,
)
from compiler.manifest import BASE, Manifest, tenant_name, tenant_order, unknown_tenant
from compiler.tenant_graph import CachedStep, TenantGraph, Tenants
from compiler.tenants import check_base, describe, lower_onto, read_adapter, read_row
from compiler.tokenizer import Message, Template, Tokenizer
from planner.errors import IncompatibleError, UsageError

MODEL = "model.onnx"
Prompt = str | Sequence[Message]
"""A plain prompt, dressed as the tenant was trained, or chat messages."""


@dataclass(frozen=True)
class Generation:
    tenant: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Classification:
    """`probabilities` has the tenant's labels in logit order; `truncated` says the text was cut."""

    tenant: str
    label: str
    probability: float
    probabilities: Mapping[str, float]
    truncated: bool


class Session:
    """An open artifact; `Session.open` makes one."""

    def __init__(self, folder: Path, graph: TenantGraph, words: Tokenizer | None) -> None:
        self.folder = folder
        self.manifest = graph.manifest
        self._graph = graph
        self._tokenizer = words

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        verify: bool = True,
        tenants: Sequence[str] | None = None,
        library: Path | None = None,
    ) -> Session:
        """Loads the artifact with all its tenants, or those named.

        Unless `verify` is off every file is checked first. `threads` None leaves the number to ONNX
        Runtime; `library` is the op library, by default the installed one.
        """
        folder = Path(folder)
        manifest = artifact.verify(folder) if verify else artifact.read_manifest(folder)
        wanted = _wanted(manifest, tenants)
        operators = (library or library_path()) if manifest.custom_ops else None
        graph = TenantGraph(manifest, Engine(folder / MODEL, library=operators, threads=threads))
        for name in wanted:
            if manifest.kind == "merged":
                graph.records[name] = manifest.tenants[name]
            else:
                graph.add(name, read_row(folder, name), manifest.tenants[name])
        has_words = "tokenizer.json" in manifest.files
        return cls(folder, graph, tokenizer.load(folder) if has_words else None)

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those that can be asked for, besides the base model."""
        return tuple(self._graph.records)

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise IncompatibleError(f"the artifact '{self.folder}' has no tokenizer")
        return self._tokenizer

    def add_tenant(self, name: str, source: Path | str | Adapter) -> None:
        """Puts a tenant in memory, from its folder, its adapter file or an adapter.

        The artifact on disk stays as it is; `compiler.tenants.add_tenant` changes that.
        """
        tenant_name(name)
        if name in self.tenants:
            raise UsageError(f"tenant '{name}' exists already", hint="remove it first")
        adapter = source if isinstance(source, Adapter) else read_adapter(Path(source))
        check_base(self.manifest, adapter, name)
        lowered = lower_onto(self.folder, self.manifest, adapter)
        self._graph.add(name, lowered, describe(name, adapter, len(self.tenants) + 1))

    def remove_tenant(self, name: str) -> None:
        """Takes a tenant out of memory; the others and the artifact on disk are untouched."""
        self._graph.rows(tenant_name(name), 1)
        self._graph.remove(name)

    def generate(
        self,
        prompts: Sequence[Prompt],
        tenants: Tenants = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        template: Template | None = None,
    ) -> list[Generation]:
        """One continuation per prompt, all in one batch; a tenant per row, or one for all.

        `seed` is each row's own, whatever its neighbours are. `template` overrides how plain
        prompts are dressed. A stop text ends a row and is not part of its text.
        """
        _check_list("prompts", prompts)
        rows = self._graph.rows(tenants, len(prompts))
        ids = [self._prompt_ids(p, t, template) for p, t in zip(prompts, rows, strict=True)]
        seeds = [seed] * len(rows) if isinstance(seed, int | np.integer) else list(seed)
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds)
        found = self.continue_tokens(ids, rows, sampling, stop=stop)
        texts = [_before(self.tokenizer.decode(each.tokens), stop) for each in found]
        return [
            Generation(row, text, each.tokens, each.finish_reason)
            for row, text, each in zip(rows, texts, found, strict=True)
        ]

    def continue_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        tenants: Tenants,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
    ) -> list[Continuation]:
        """As `generate`, from token ids to token ids."""
        self._check_task("causal_lm")
        rows = self._graph.rows(tenants, len(prompts))
        check_sampling(sampling, len(rows))
        if not all(stop):
            raise UsageError("a stop text is empty, so it would end every answer at once")
        for index, prompt in enumerate(prompts):
            self._check_length(f"prompt {index}", len(prompt), room=1)
            _check_ids(f"prompt {index}", min(prompt))
        if not rows:
            return []
        with self._graph.lock:
            return generate(
                CachedStep(self._graph, rows),
                prompts,
                sampling,
                pad_id=self.tokenizer.pad_id,
                end_ids=self.tokenizer.eos_ids,
                stopped=partial(_holds_any, self.tokenizer, tuple(stop)),
                context_length=self.manifest.context_length,
            )

    def classify(
        self, texts: Sequence[str], tenants: Tenants, *, max_length: int | None = None
    ) -> list[Classification]:
        """The likeliest of each row's tenant's own labels; texts beyond `max_length` are cut."""
        self._check_task("sequence_classification")
        _check_list("texts", texts)
        if max_length is not None and max_length < 1:
            raise UsageError(f"max_length must be at least 1, not {max_length}")
        rows = self._graph.rows(tenants, len(texts))
        labels = [self._labels(row) for row in rows]
        limit = max_length or self.manifest.context_length
        whole = [self.tokenizer.encode(text) for text in texts]
        ids = [self.tokenizer.encode(text, max_length=limit) for text in texts]
        if not texts:
            return []
        padded, mask = pad_right(ids, self.tokenizer.pad_id)
        logits = self._graph.logits(padded, mask, rows)
        return [
            _classification(row, names, scores, truncated=len(cut) < len(full))
            for row, names, scores, cut, full in zip(rows, labels, logits, ids, whole, strict=True)
        ]

    def logits(
        self,
        input_ids: Integers,
        tenants: Tenants = None,
        *,
        attention_mask: Integers | None = None,
    ) -> Floats:
        """[batch, sequence, vocabulary], or [batch, labels] of a classifier; ids [batch, seq]."""
        if input_ids.ndim != 2:
            raise UsageError(f"input_ids have the shape {input_ids.shape}, not [batch, sequence]")
        _check_ids("input_ids", int(input_ids.min(initial=0)))
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = self._graph.rows(tenants, len(input_ids))
        return self._graph.logits(input_ids, mask, rows)

    def run(self, inputs: Mapping[str, Array], tenants: Tenants = None) -> dict[str, Array]:
        """All outputs of a module's graph; the first axis of every input is the batch."""
        self._graph.check_inputs(inputs)
        rows = self._graph.rows(tenants, len(next(iter(inputs.values()))))
        found = self._graph.run(inputs, rows, self._graph.engine.outputs)
        return {name: value.numpy() for name, value in found.items()}

    def perplexity(
        self, sequences: Sequence[TokenSequence], tenants: Tenants = None, *, batch_size: int = 4
    ) -> Evaluation:
        """Over all counted tokens of the sequences; a tenant per sequence, or one for all."""
        self._check_task("causal_lm")
        rows = self._graph.rows(tenants, len(sequences))
        for index, (ids, _) in enumerate(sequences):
            self._check_length(f"sequence {index}", len(ids), room=0)
        return evaluate(
            self._graph, sequences, rows, pad_id=self.tokenizer.pad_id, batch_size=batch_size
        )

    def _prompt_ids(self, prompt: Prompt, tenant: str, template: Template | None) -> list[int]:
        if not isinstance(prompt, str):
            return self.tokenizer.encode(self.tokenizer.chat(prompt), special_tokens=False)
        record = self._graph.records.get(tenant)
        trained = record.template if record else None
        usual: Template = "text" if self.tokenizer.template is None else "chat"
        return self.tokenizer.prompt(prompt, template or trained or usual)

    def _labels(self, tenant: str) -> tuple[str, ...]:
        labels = self._graph.records[tenant].labels if tenant != BASE else None
        if labels is None:
            raise UsageError(
                f"'{tenant}' has no labels to classify with",
                hint=f"name one of the tenants: {', '.join(self.tenants or self.manifest.tenants)}",
            )
        return labels

    def _check_task(self, task: str) -> None:
        if self.manifest.task != task:
            raise UsageError(
                f"the artifact's task is {self.manifest.task}, which does not allow this",
                hint=_USE[self.manifest.task],
            )

    def _check_length(self, what: str, length: int, *, room: int) -> None:
        limit = self.manifest.context_length
        if length == 0:
            raise UsageError(f"{what} is empty: it has no token")
        if limit is not None and length + room > limit:
            raise UsageError(
                f"{what} has {length} tokens, but the model's context is {limit}"
                + (" and must hold an answer too" if room else "")
            )


_USE = {
    "causal_lm": "use `generate`, `logits` or `perplexity`",
    "sequence_classification": "use `classify` or `logits`",
    "module": "use `run`",
}


def _wanted(manifest: Manifest, tenants: Sequence[str] | None) -> tuple[str, ...]:
    known = tenant_order(manifest)
    for name in tenants or ():
        if name not in known:
            raise unknown_tenant(name, known)
    if tenants is None or manifest.kind == "merged":
        return known
    return tuple(dict.fromkeys(tenants))


def _classification(
    tenant: str, labels: Sequence[str], logits: Floats, *, truncated: bool
) -> Classification:
    probabilities = softmax(logits[: len(labels)]).tolist()
    best = int(np.argmax(probabilities))
    named = dict(zip(labels, probabilities, strict=True))
    return Classification(tenant, labels[best], probabilities[best], named, truncated)


def _holds_any(words: Tokenizer, stop: tuple[str, ...], tokens: list[int]) -> bool:
    text = words.decode(tokens) if stop else ""
    return any(end in text for end in stop)


def _check_list(name: str, texts: Sequence[object]) -> None:
    """A text is a sequence too: of its letters."""
    if isinstance(texts, str):
        raise UsageError(f"{name} is one text, not a list of them", hint="put it in a list")


def _check_ids(what: str, smallest: int) -> None:
    """A negative id would be counted from the end of the vocabulary."""
    if smallest < 0:
        raise UsageError(f"{what} has the token id {smallest}; ids begin at 0")


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]
