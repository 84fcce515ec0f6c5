"""X-LoRA (Buehler and Buehler, 2024, arXiv 2402.07148): a classifier mixes frozen LoRA experts.

A first pass of the model gives the hidden states that the classifier turns into one weight per
expert and token; a second pass uses them. Experts here have rank 16.
"""

from planner.method import Cost, Dimensions, Method, TensorSpec

EXPERT_RANK = 16

EXPERTS = (
    TensorSpec("experts.lora_A", ("experts", EXPERT_RANK, "in"), "trained_expert", trainable=False),
    TensorSpec(
        "experts.lora_B", ("experts", "out", EXPERT_RANK), "trained_expert", trainable=False
    ),
)


def cost(d: Dimensions) -> Cost:
    pairs = d["experts"] * EXPERT_RANK * (d["in"] + d["out"])
    # An expert's weight scales its output, so its output is kept.
    return Cost(multiplications=pairs, saved_elements=d["experts"] * d["out"], row_elements=pairs)


METHOD = Method(
    name="x_lora",
    title="X-LoRA",
    paper="arXiv:2402.07148",
    tensors=(
        *EXPERTS,
        TensorSpec("classifier.weight", ("experts", "hidden"), "kaiming_uniform", scope="model"),
        TensorSpec("classifier.bias", ("experts",), "kaiming_uniform", scope="model"),
    ),
    costs={"target": cost},
    ranks=(2, 4, 8),
    size="experts",
    drops_input=True,
    learning_rate=1e-4,
    forward_passes=2,
    serves=("unmerged",),
    peft_config={"peft_type": "XLORA"},
)
