"""Tied-LoRA (Renduchintala et al., 2023, arXiv 2311.09578): y += s v * (B (u * (A x))).

A and B are trained once for all linears of one role and shape; each linear has vectors u and v.
"""

from collections.abc import Mapping
from dataclasses import replace

from planner.method import Site, TensorSpec
from planner.methods.lora import METHOD as LORA
from planner.update import LowRank, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    return (
        LowRank(
            tensors["tied_A"],
            site.scaling * tensors["tied_B"],
            latent_scale=tensors["tied_u"],
            output_scale=tensors["tied_v"],
        ),
    )


METHOD = replace(
    LORA,
    name="tied_lora",
    title="Tied-LoRA",
    paper="arXiv:2311.09578",
    builds=False,
    tensors=(
        TensorSpec("tied_A", ("rank", "in"), "kaiming_uniform", scope="role"),
        TensorSpec("tied_B", ("out", "rank"), "constant", 0.0, scope="role"),
        TensorSpec("tied_u", ("rank",), "constant", 1.0),
        TensorSpec("tied_v", ("out",), "constant", 1.0),
    ),
    update=update,
    peft_config=None,
)
