"""Hybrid-LoRA (Zhang et al., 2026, arXiv 2605.18822): a tenth of the linears is trained whole.

A score finds those that a low rank would serve worst; the others get LoRA. The paper's abstract
states the tenth; which linears it takes is known only in training, so counts are expectations.
"""

from dataclasses import replace

from planner.method import TRUNCATED, Cost, Dimensions, TensorSpec
from planner.methods.lora import METHOD as LORA

WHOLE = 0.1


def cost(d: Dimensions) -> Cost:
    pair = d["rank"] * (d["in"] + d["out"])
    return Cost(
        multiplications=round((1 - WHOLE) * pair), saved_elements=d["rank"], saves_input=True
    )


METHOD = replace(
    LORA,
    name="hybrid_lora",
    title="Hybrid-LoRA",
    paper="arXiv:2605.18822",
    builds=False,
    tensors=(
        *(spec._replace(share=1 - WHOLE) for spec in LORA.tensors),
        TensorSpec(
            "weight", ("out", "in"), "base_weight", share=WHOLE, learning_rate_multiplier=0.1
        ),
    ),
    costs={"target": cost},
    formats=("fp32", "bf16"),
    serves=("merged",),
    converts_to=TRUNCATED,
    peft_config=None,
)
