"""The record that cost formulas read: one model's dimensions, linears, norms and counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from planner.architecture.modules import Norm
from planner.method import Target

Kind = Literal["decoder", "encoder", "encoder_decoder"]
NormKind = Literal["rmsnorm", "layernorm"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Position = Literal["rotary", "learned", "alibi", "relative"]

UNFORMATTED = ("head", "router")
"""Roles whose weights no format stores: they stay in the type of the norms and embeddings."""


@dataclass(frozen=True, eq=False, repr=False)
class Architecture:
    """Dimensions of one model; `parameters` counts tied weights once. Equal only to itself.

    It counts a decoder and an encoder-decoder with its head, an encoder with its pooler and
    without a classifier. In an encoder-decoder `layers` are the decoder's.

    intermediate         width of the MLP that every token passes, dense or shared expert; 0 where
                         there are routed experts only
    positions            longest input; 0 where the position scheme sets no limit
    gated, parallel      MLP with a gate; attention and MLP side by side on one residual
    qk_norm              query and key are normalised
    writes_scores        attention has no kernel that keeps the scores out of memory
    caps_scores, caps_logits   scores, or logits, pass a tanh
    drops_scores, drops_stream, drops_inner   its own training drops some of the scores, of what
                         attention and MLP add to the stream, or of what an MLP's last linear reads
    experts              routed experts of a layer, of which a token passes `experts_per_token`,
                         each `expert_intermediate` wide; all 0 where the MLP is dense
    norms                every norm of the model, in order
    biases               the names of the targets that have a bias
    sliding_window       tokens that `sliding_layers` of the decoder's layers look back; 0 is all
    vocab                0 where the input is an image
    unbuilt              why the compiler cannot build the family, empty where it can
    """

    model_type: str
    kind: Kind
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    gated: bool
    tied: bool
    targets: tuple[Target, ...]
    parameters: int
    norms: tuple[Norm, ...]
    norm: NormKind
    activation: Activation
    position: Position
    parallel: bool = False
    qk_norm: bool = False
    writes_scores: bool = False
    caps_scores: bool = False
    caps_logits: bool = False
    drops_scores: bool = False
    drops_stream: bool = False
    drops_inner: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    biases: frozenset[str] = frozenset()
    sliding_window: int = 0
    sliding_layers: int = 0
    encoder_layers: int = 0
    unbuilt: str = ""

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the linears that a format stores; embeddings, head, norms, biases are not."""
        return _weights(t for t in self.targets if t.role not in UNFORMATTED)

    @cached_property
    def largest_weight(self) -> int:
        linears = (t for t in self.targets if t.role not in UNFORMATTED)
        return max(t.out_features * t.in_features for t in linears)

    @cached_property
    def largest_dense_weight(self) -> int:
        """Of the linears that every token passes."""
        linears = (t for t in self.targets if not t.role.startswith("experts."))
        dense = (t for t in linears if t.role not in UNFORMATTED)
        return max(t.out_features * t.in_features for t in dense)

    @cached_property
    def wide_norms(self) -> int:
        """Norms over the residual stream, that is all but those of queries and keys."""
        return sum(norm.width == self.hidden for norm in self.norms)

    @cached_property
    def fused_qkv(self) -> bool:
        """Whether query, key and value are one linear."""
        return any(target.role == "attention.qkv" for target in self.targets)

    @cached_property
    def biased_head(self) -> bool:
        return any(t.role == "head" and t.name in self.biases for t in self.targets)

    @cached_property
    def idle_parameters(self) -> int:
        """Weights of the experts that a token does not pass."""
        if not self.experts:
            return 0
        return self.expert_parameters * (self.experts - self.experts_per_token) // self.experts

    @cached_property
    def expert_parameters(self) -> int:
        """Weights of all routed experts."""
        return _weights(t for t in self.targets if t.role.startswith("experts."))

    @property
    def active_parameters(self) -> int:
        """Parameters that take part for one token."""
        return self.parameters - self.idle_parameters

    @property
    def active_linear_parameters(self) -> int:
        """Weights of `linear_parameters` that one token is multiplied with."""
        return self.linear_parameters - self.idle_parameters

    @cached_property
    def weighted_outputs(self) -> int:
        """Outputs of experts that a router weights for one token: of routed ones and of one that
        every token passes, where it has a gate of its own.
        """
        gated = any(t.role == "router" and t.out_features == 1 for t in self.targets)
        return self.experts_per_token + gated

    @property
    def active_intermediate(self) -> int:
        """Width of the MLP that one token passes in a layer, its experts side by side."""
        return self.intermediate + self.experts_per_token * self.expert_intermediate

    @cached_property
    def bias_parameters(self) -> int:
        """Numbers in the biases of the linears; those of the norms are not among them."""
        return sum(t.out_features for t in self.targets if t.name in self.biases)


def _weights(targets: Iterable[Target]) -> int:
    return sum(t.out_features * t.in_features for t in targets)
