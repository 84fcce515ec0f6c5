"""BaLoRA (Coscia et al., 2026, arXiv 2605.08110): LoRA whose A is noisy in training.

A network 256 wide reads pooled features and sets the noise of every layer. Served without noise
it is LoRA; the network's shape follows an account of the paper, not the paper itself.
"""

from dataclasses import replace

from planner.method import Cost, Dimensions
from planner.methods.lora import METHOD as LORA
from planner.methods.p_tuning import dense

WIDTH = 256


def cost(d: Dimensions) -> Cost:
    rank = d["rank"]
    # The variance of A x is the product of the squares of x and A.
    return Cost(
        multiplications=rank * (2 * d["in"] + d["out"]),
        saved_elements=3 * rank,
        saves_input=True,
        pass_elements=rank * d["in"],
    )


METHOD = replace(
    LORA,
    name="balora",
    title="BaLoRA",
    paper="arXiv:2605.08110",
    builds=False,
    tensors=(
        *LORA.tensors,
        *dense("noise.0", WIDTH, "hidden"),
        *dense("noise.1", WIDTH, WIDTH),
        *dense("noise.2", "layers", WIDTH),
    ),
    costs={"target": cost},
    peft_config=None,
)
