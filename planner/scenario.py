"""What candidates are held against."""

from dataclasses import dataclass
from functools import cached_property

from planner.architecture import Architecture
from planner.catalog import Model
from planner.quality import data_bits
from planner.spec import Family, Hardware, Spec

GIB = 2**30
GENERATES = ("causal_lm", "seq2seq_lm")


@dataclass(frozen=True, eq=False, repr=False)
class Scenario:
    """A spec without gaps; bytes, seconds and tokens. None is unlimited or unknown.

    Equal only to itself, so that what was found for one is remembered at little cost.
    """

    spec: Spec
    model: Model
    family: Family
    training: Hardware
    serving: Hardware
    training_budget_bytes: float
    serving_budget_bytes: float
    tenants: int
    active_tenants: int
    slots: int
    concurrency: int
    context_length: int
    prompt_tokens: int
    first_token_seconds: float | None
    per_token_seconds: float | None
    examples: int
    mean_tokens: int
    labels: int
    sequence_length: int
    effective_batch: int
    assumptions: tuple[str, ...]

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @cached_property
    def data_bits(self) -> float:
        """What a tenant's data bring (planner.quality.data_bits)."""
        return data_bits(self.family, self.examples, self.mean_tokens, self.labels)

    @property
    def data_tokens(self) -> int:
        return self.examples * self.mean_tokens

    @property
    def rows(self) -> int:
        """Rows of training in an epoch: examples, or what is left of them when they are packed."""
        if not self.spec.training.packing:
            return self.examples
        tokens = self.examples * min(self.mean_tokens, self.sequence_length)
        return -(-tokens // self.sequence_length)

    @property
    def row_tokens(self) -> int:
        """Of such a row: full when packed, else padded to the longest of its batch, about twice
        the mean.
        """
        if self.spec.training.packing:
            return self.sequence_length
        return min(self.sequence_length, 2 * self.mean_tokens)

    @property
    def causal(self) -> bool:
        return self.spec.task in GENERATES


def lacks_bf16(device: Hardware) -> bool:
    """No bf16 arithmetic; a GPU of which nothing is known is taken to have it."""
    unknown = device.kind == "gpu" and device.fp32_tflops is None
    return device.bf16_tflops is None and not unknown
