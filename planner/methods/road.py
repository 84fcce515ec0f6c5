"""RoAd (Liao et al., 2024, arXiv 2409.00119): pairs of outputs are rotated and scaled.

The first variant: one angle and one scale per pair; pairs lie within groups of 64 outputs.
"""

from planner.method import TRUNCATED, Cost, Dimensions, Method, TensorSpec

GROUP = 64


def output_pairs(d: Dimensions) -> int:
    return d["out"] // 2


def cost(d: Dimensions) -> Cost:
    # The output of the base and its rotated half are kept.
    return Cost(
        multiplications=2 * d["out"], saved_elements=2 * d["out"], row_elements=2 * d["out"]
    )


def misfit(d: Dimensions) -> str | None:
    return f"its {d['out']} outputs are no multiple of {GROUP}" if d["out"] % GROUP else None


METHOD = Method(
    name="road",
    title="RoAd",
    paper="arXiv:2409.00119",
    tensors=(
        TensorSpec("road_theta", (output_pairs,), "constant", 0.0, peft_key="road_theta"),
        TensorSpec("road_alpha", (output_pairs,), "constant", 1.0, peft_key="road_alpha"),
    ),
    costs={"target": cost},
    misfit=misfit,
    learning_rate=1e-3,
    converts_to=TRUNCATED,
    peft_config={"peft_type": "ROAD"},
)
