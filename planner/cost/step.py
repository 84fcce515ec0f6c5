"""One micro-batch of training: what decides its memory besides the model and the adapter."""

from typing import NamedTuple

from planner.cost.activations import Pass
from planner.cost.framework import PARETUNE, PEFT, Framework
from planner.cost.weights import COMPUTE_BYTES, FP32, QUANTISED


class Step(NamedTuple):
    """One micro-batch of training.

    `trains_base` says that the model's own parameters are trained. `adapter_dtype` is of the
    adapters and of a classifier's head, "fp32" or "bf16"; `loss` "full" holds the logits of all
    tokens; `accumulates` says that gradients of another micro-batch are there already. Without a
    `framework` a full loss means transformers with PEFT, and a chunked one the compiler.
    """

    trains_base: bool
    format: str
    compute: str
    optimizer: str
    batch_size: int
    sequence_length: int
    checkpointing: str
    accumulates: bool
    causal: bool
    labels: int
    loss: str = "chunked"
    attention: str = "flash"
    dropout: float = 0.0
    adapter_dtype: str = "fp32"
    framework: Framework | None = None

    @property
    def program(self) -> Framework:
        return self.framework or (PEFT if self.loss == "full" else PARETUNE)

    @property
    def element(self) -> int:
        return COMPUTE_BYTES[self.compute]

    @property
    def stream_element(self) -> int:
        """Bytes of a number that flows between the products."""
        upcast = self.program.upcasts_stream and self.format in QUANTISED
        return FP32 if upcast else self.element

    @property
    def trained_element(self) -> int:
        """Bytes of a number of a trained base."""
        own = FP32 if self.format == "fp32" else self.element
        return self.program.master_bytes or own

    @property
    def adapter_element(self) -> int:
        return COMPUTE_BYTES[self.adapter_dtype]

    @property
    def adapter_compute(self) -> str:
        """Type that adapters compute in: that of the products, unless they keep their own."""
        cast = self.program.casts_adapters or self.program.autocasts
        return self.compute if cast else self.adapter_dtype

    @property
    def tokens(self) -> float:
        return self.batch_size * self.sequence_length

    @property
    def run(self) -> Pass:
        return Pass(
            self.sequence_length,
            self.element,
            self.stream_element,
            self.attention,
            self.program,
            trains_norms=self.trains_base,
        )
