"""The manifest: what an artifact folder holds, and the digest of every file in it.

On disk it is JSON in one fixed form, with the sha256 of everything else in it under "digest": a
changed byte anywhere in the manifest is noticed, as it is in any other file.
"""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from planner.errors import IncompatibleError, UsageError, did_you_mean

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
BASE = "base"
"""The reserved tenant name of the base model itself: slot 0, no adapter."""

TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def _plain_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if "\\" in path or ".." in parts or path.startswith("/") or str(PurePosixPath(*parts)) != path:
        raise ValueError(f"'{path}' is not a plain relative path")
    return path


def _tenant(name: str) -> str:
    if not TENANT_NAME.fullmatch(name) or name == BASE:
        raise ValueError(f"'{name}' is not a tenant name")
    return name


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, Field(min_length=1), AfterValidator(_plain_path)]
TenantName = Annotated[str, AfterValidator(_tenant)]
Count = Annotated[int, Field(ge=0)]
Features = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(Frozen):
    sha256: Digest
    bytes: Count


class StoredArray(Frozen):
    """Where one initializer lies in a data file: row-major, little endian."""

    file: RelativePath
    offset_bytes: Count
    length_bytes: Count
    dtype: Literal["float32", "bfloat16", "uint8"]
    shape: tuple[Count, ...]


class SiteRecord(Frozen):
    """A linear that tenants may adapt, and its frozen weight.

    `weight` has the one key "weight", or the field names of a quantised weight: "codes", "absmax",
    "codebook" and, when nested, "nested_absmax", "nested_codebook", "offset".
    """

    name: str
    role: str
    out_features: Features
    in_features: Features
    weight: dict[str, StoredArray]
    bias: StoredArray | None = None


class BaseRecord(Frozen):
    digest: Digest
    name: str


class KvCache(Frozen):
    layers: Features
    kv_heads: Features
    head_dim: Features


class TenantRecord(Frozen):
    """One tenant: `order` is its place among the slots, `targets` the sites that it adapts.

    `template` says how a plain prompt was dressed in training; `labels` are in logit order.
    """

    order: Count
    method: str
    rank: int | None
    alpha: float | None
    targets: tuple[str, ...]
    scalings: dict[str, float] = {}
    labels: tuple[str, ...] | None = None
    template: Literal["chat", "text"] | None = None
    files: tuple[RelativePath, ...] = ()


class Manifest(Frozen):
    """`inputs` and `outputs` are the graph's; `sites` are in the order of the bank's directory."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["unmerged", "merged"]
    task: Literal["causal_lm", "sequence_classification", "module"]
    base: BaseRecord
    format: Literal["fp32", "bf16", "nf4"]
    precision: Literal["exact", "fast"]
    custom_ops: bool = True
    sites: tuple[SiteRecord, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kv: KvCache | None = None
    context_length: int | None = None
    tenants: dict[TenantName, TenantRecord]
    files: dict[RelativePath, FileRecord]
    plan_digest: Digest | None = None
    data: dict[str, Digest] = {}
    seeds: dict[str, int] = {}
    versions: dict[str, str] = {}


def tenant_name(name: str) -> str:
    """The name itself; raises UsageError when it could not name a tenant."""
    if name == BASE:
        raise UsageError(f"'{BASE}' is the base model's own name and cannot name a tenant")
    if not TENANT_NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name a tenant",
            hint="use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first",
        )
    return name


def unknown_tenant(name: str, known: Collection[str]) -> UsageError:
    return UsageError(
        f"unknown tenant '{name}'; tenants are {', '.join(known) or 'none'}",
        hint=did_you_mean(name, known),
    )


def tenant_order(manifest: Manifest) -> tuple[str, ...]:
    """The tenants' names in slot order."""
    return tuple(sorted(manifest.tenants, key=lambda name: manifest.tenants[name].order))


def render(manifest: Manifest) -> bytes:
    """The one byte form of a manifest."""
    body = manifest.model_dump(mode="json")
    return _text({"digest": _digest(body), **body})


def parse(data: bytes) -> Manifest:
    """The inverse of `render`; raises IncompatibleError on any other bytes."""
    try:
        body: dict[str, Any] = json.loads(data)
        stated = body.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise IncompatibleError(f"{MANIFEST} is not a manifest: {error}") from error
    version = body.get("schema_version")
    if version != SCHEMA_VERSION:
        raise IncompatibleError(
            f"{MANIFEST} has schema version {version}; this release reads {SCHEMA_VERSION}"
        )
    if stated != _digest(body) or data != _text({"digest": stated, **body}):
        raise IncompatibleError(
            f"{MANIFEST} has been altered: its contents do not match its own digest"
        )
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IncompatibleError(f"{MANIFEST} is not valid at {place}: {first['msg']}") from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
