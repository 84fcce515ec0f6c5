"""LR-LoRA (Garg et al., 2026, arXiv 2606.04325): W' = W + s phi(B A), phi learned element-wise.

phi is a sum of eight sinc functions, each with an amplitude, a frequency and a place. The form
follows an account of the paper and its authors' earlier code, not the paper itself.
"""

from dataclasses import replace

from planner.method import TRUNCATED, Cost, Dimensions, TensorSpec
from planner.methods.lora import METHOD as LORA

FUNCTIONS = 8


def cost(d: Dimensions) -> Cost:
    dense = d["in"] * d["out"]
    # B A is kept for the gradient of phi, phi(B A) for the gradient of x.
    return Cost(
        multiplications=dense,
        saves_input=True,
        pass_multiplications=(d["rank"] + FUNCTIONS) * dense,
        pass_elements=2 * dense,
        workspace_elements=dense,
    )


METHOD = replace(
    LORA,
    name="lr_lora",
    title="LR-LoRA",
    paper="arXiv:2606.04325",
    builds=False,
    tensors=(
        *LORA.tensors,
        TensorSpec("amplitudes", (FUNCTIONS,), "constant", 1 / FUNCTIONS),
        TensorSpec("frequencies", (FUNCTIONS,), "constant", 1.0),
        TensorSpec("places", (FUNCTIONS,), "evenly_spaced", 0.8),
    ),
    costs={"target": cost},
    serves=("merged",),
    converts_to=TRUNCATED,
    peft_config=None,
)
