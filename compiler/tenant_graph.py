"""A graph with its bank: one batch at a time, every row with the tenant that it names.

A lock makes calls take turns, so a slot is never emptied or filled again while a batch reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from compiler.bank import AdapterBank
from compiler.engine import Array, Engine, Feed, Value
from compiler.generation import Floats, Integers, positions_of
from compiler.manifest import BASE, Manifest, TenantRecord, unknown_tenant
from compiler.row import LoweredSite, Row
from compiler.tenants import bank_sites
from planner.errors import IncompatibleError, UsageError

Tenant = str | None
"""A tenant's name; None and "base" are the base model."""

Tenants = Sequence[Tenant] | Tenant
"""One per row of a batch, or one for all rows."""


BANK_INPUTS = ("bank", "slot")


class TenantGraph:
    """`records` are the tenants that can be asked for, besides the base model."""

    def __init__(self, manifest: Manifest, engine: Engine) -> None:
        self.manifest = manifest
        self.engine = engine
        self.lock = threading.RLock()
        self.records: dict[str, TenantRecord] = {}
        self._bank = AdapterBank(bank_sites(manifest)) if manifest.kind == "unmerged" else None
        self.past = tuple(name for name in engine.inputs if name.startswith("past."))
        """The cache's input names; output "present.x" is the next "past.x"."""

    @property
    def bank(self) -> AdapterBank:
        if self._bank is None:
            raise IncompatibleError(
                f"the artifact is merged: it holds '{next(iter(self.records))}' alone",
                hint="export it unmerged to add and remove tenants",
            )
        return self._bank

    def check_inputs(self, given: Collection[str]) -> None:
        """Raises UsageError unless these are the names of the model's own inputs."""
        names = [name for name in self.engine.inputs if name not in BANK_INPUTS]
        if set(given) != set(names):
            raise UsageError(
                f"the graph's inputs are {', '.join(names)}, not {', '.join(given) or 'none'}"
            )

    def add(
        self, name: str, updates: Row | Mapping[str, LoweredSite], record: TenantRecord
    ) -> None:
        with self.lock:
            if isinstance(updates, Row):
                self.bank.add_row(name, updates)
            else:
                self.bank.add(name, updates)
            self.records[name] = record

    def remove(self, name: str) -> None:
        with self.lock:
            self.bank.remove(name)
            del self.records[name]

    def rows(self, tenants: Tenants, count: int) -> list[str]:
        """The tenant of each row; raises UsageError for an unknown one, never takes the base."""
        names = [tenants] * count if tenants is None or isinstance(tenants, str) else list(tenants)
        if len(names) != count:
            raise UsageError(f"{len(names)} tenants are named for {count} rows")
        rows = [BASE if name is None else name for name in names]
        for row in dict.fromkeys(rows):
            self._check_known(row)
        return rows

    def run(
        self, feeds: Mapping[str, Feed], rows: Sequence[str], outputs: tuple[str, ...]
    ) -> dict[str, Value]:
        """The outputs for one batch; `rows` as `rows()` gave them."""
        with self.lock:
            if self._bank is None:
                return self.engine.run(feeds, outputs)
            slots = [0 if row == BASE else self._bank.slot(row) for row in rows]
            adapted: dict[str, Feed] = {"bank": self._bank.array, "slot": np.array(slots, np.int64)}
            return self.engine.run({**feeds, **adapted}, outputs)

    def logits(self, ids: Integers, mask: Integers, rows: Sequence[str]) -> Floats:
        """Of every position, without a cache; ids and mask are [batch, sequence]."""
        feeds = {
            **self.token_feeds(ids, mask, positions_of(mask), keep=ids.shape[1]),
            **self.empty_past(len(rows)),
        }
        logits: Floats = self.run(feeds, rows, ("logits",))["logits"].numpy()
        return logits

    def token_feeds(
        self, ids: Integers, mask: Integers, positions: Integers, *, keep: int
    ) -> dict[str, Feed]:
        """Those of the inputs that the graph has; `keep` is how many last positions get logits."""
        feeds: dict[str, Feed] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": positions,
        }
        if "keep" in self.engine.inputs:
            feeds["keep"] = np.full((1,) * self.engine.ranks["keep"], keep, np.int64)
        return {name: feed for name, feed in feeds.items() if name in self.engine.inputs}

    def empty_past(self, batch: int) -> dict[str, Array]:
        if not self.past:
            return {}
        kv = self.manifest.kv
        if kv is None:
            raise IncompatibleError("the graph has a cache, but the manifest does not describe it")
        nothing = np.zeros((batch, kv.kv_heads, 0, kv.head_dim), np.float32)
        return dict.fromkeys(self.past, nothing)

    def _check_known(self, name: str) -> None:
        if name in self.records or (name == BASE and self._bank is not None):
            return
        if name == BASE:
            only = next(iter(self.records))
            raise UsageError(
                f"the base model is not in the artifact: it is merged and holds '{only}' alone",
                hint=f"name the tenant '{only}'",
            )
        raise unknown_tenant(name, self.records)


class CachedStep:
    """A forward pass that keeps keys and values; its rows' tenants stay the same."""

    def __init__(self, graph: TenantGraph, rows: Sequence[str]) -> None:
        self._graph = graph
        self._rows = rows
        self._past: Mapping[str, Feed] = graph.empty_past(len(rows))
        self._presents = tuple(name.replace("past.", "present.", 1) for name in graph.past)

    def __call__(self, ids: Integers, mask: Integers, positions: Integers) -> Floats:
        feeds = {**self._graph.token_feeds(ids, mask, positions, keep=1), **self._past}
        found = self._graph.run(feeds, self._rows, ("logits", *self._presents))
        presents = [found[name] for name in self._presents]
        self._past = dict(zip(self._graph.past, presents, strict=True))
        logits: Floats = found["logits"].numpy()[:, -1]
        return logits
