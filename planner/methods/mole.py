"""MoLE (Wu et al., 2024, arXiv 2404.13628): a gate in every block mixes frozen LoRA experts.

Equations 9 to 12: the experts' outputs, side by side, are multiplied by e [experts x length x
width, experts] and divided by a learned temperature before the softmax. A length fixed in a tensor
suits no text, so here the gate reads one token at a time.
"""

from planner.method import Cost, Dimensions, Method, TensorSpec
from planner.methods.x_lora import EXPERTS
from planner.methods.x_lora import cost as mixed_experts


def side_by_side(d: Dimensions) -> int:
    return d["experts"] * d["hidden"]


def gate(d: Dimensions) -> Cost:
    inputs = d["experts"] * d["hidden"]
    return Cost(
        multiplications=inputs * d["experts"],
        saved_elements=inputs,
        row_elements=inputs * d["experts"] + 1,
    )


METHOD = Method(
    name="mole",
    title="MoLE",
    paper="arXiv:2404.13628",
    tensors=(
        *EXPERTS,
        TensorSpec(
            "gate.weight",
            (side_by_side, "experts"),
            "kaiming_uniform",
            scope="layer",
        ),
        TensorSpec("gate.temperature", (1,), "constant", 1.0, scope="layer"),
    ),
    costs={"target": mixed_experts, "layer": gate},
    ranks=(2, 4, 8),
    size="experts",
    learning_rate=1e-4,
    serves=("unmerged",),
)
