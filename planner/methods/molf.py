"""MoLF (arXiv 2605.07111): W and a LoRA pair are trained together, the better of them each step.

The forward pass sums both; every step updates the moments of both and the weights of the one
that promises the greater decrease of the loss. The pair is folded into W at the end.
"""

from collections.abc import Mapping
from dataclasses import replace

from planner.method import Site
from planner.methods.full import METHOD as FULL
from planner.methods.rslora import METHOD as RSLORA
from planner.update import Dense, LowRank, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    pair = LowRank(tensors["lora_A"], site.scaling * tensors["lora_B"])
    return (Dense(site.weight), pair)


METHOD = replace(
    FULL,
    name="molf",
    title="MoLF",
    paper="arXiv:2605.07111",
    builds=False,
    tensors=RSLORA.tensors,
    update=update,
    scaling=RSLORA.scaling,
    ranks=(32, 64, 128),
    default_alpha=RSLORA.default_alpha,
    learning_rate=5e-5,
)
