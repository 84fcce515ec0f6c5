"""Gemma 3 (Kamath et al., 2025), text: Gemma 2's blocks with a norm over each head's query and
key; one layer in six looks back without limit."""

from collections.abc import Iterator, Mapping

from planner.architecture.dimensions import Dimensions
from planner.architecture.families import gemma2, llama
from planner.architecture.modules import Module, Norm, repeat


def block(size: Dimensions) -> Iterator[Module]:
    yield from gemma2.block(size)
    yield Norm("self_attn.q_norm", size.head_dim, bias=False)
    yield Norm("self_attn.k_norm", size.head_dim, bias=False)


def modules(size: Dimensions) -> Iterator[Module]:
    return llama.model(size, repeat("model.layers", size.layers, block(size)))


def sliding_layers(config: Mapping[str, object], layers: int) -> int:
    pattern = config.get("sliding_window_pattern", 6)
    return layers - layers // pattern if isinstance(pattern, int) and pattern > 0 else 0


FAMILY = gemma2.FAMILY._replace(
    modules=modules,
    qk_norm=True,
    sliding_layers=sliding_layers,
    writes_scores=False,
    soft_caps=False,
    unbuilt="",
)
