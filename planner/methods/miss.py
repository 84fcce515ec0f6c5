"""MiSS (Kang and Yin, 2024, arXiv 2409.15371): y += M^T (sums of x over strides of the rank).

The sums take the place of LoRA's A x, so only rank numbers per token are kept for M's gradient.
"""

from planner.method import SAME_RANK, Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    return Cost(multiplications=d["rank"] * d["out"], saved_elements=d["rank"])


METHOD = Method(
    name="miss",
    title="MiSS",
    paper="arXiv:2409.15371",
    tensors=(TensorSpec("miss_block", ("rank", "out"), "constant", 0.0, peft_key="miss_block"),),
    costs={"target": cost},
    ranks=(16, 32, 64, 128),
    misfit=lambda d: (
        f"rank {d['rank']} is more than its width {d['in']}" if d["rank"] > d["in"] else None
    ),
    drops_input=True,
    learning_rate=1e-4,
    converts_to=SAME_RANK,
    peft_config={"peft_type": "MISS"},
)
