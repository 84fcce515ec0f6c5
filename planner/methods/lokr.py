"""LoKr (Yeh et al., 2023, arXiv 2309.14859): W' = W + s (w1 kron w2), w2 of low rank.

Sides are split into the two factors nearest to each other; w2 [out2, in2] is stored whole where
the rank reaches half of its larger side.
"""

from math import isqrt

from planner.method import Conversion, Cost, Dimensions, Method, TensorSpec


def small(side: int) -> int:
    """The greatest divisor that is no more than the square root."""
    return next(n for n in range(isqrt(side), 0, -1) if side % n == 0)


def out1(d: Dimensions) -> int:
    return small(d["out"])


def in1(d: Dimensions) -> int:
    return small(d["in"])


def out2(d: Dimensions) -> int:
    return d["out"] // small(d["out"])


def in2(d: Dimensions) -> int:
    return d["in"] // small(d["in"])


def factored(d: Dimensions) -> bool:
    return 2 * d["rank"] < max(out2(d), in2(d))


def whole(d: Dimensions) -> bool:
    return not factored(d)


def cost(d: Dimensions) -> Cost:
    dense = d["in"] * d["out"]
    # PEFT forms the dense difference in every pass, keeps it, and multiplies x by it.
    return Cost(
        multiplications=dense,
        saves_input=True,
        pass_multiplications=dense + d["rank"] * out2(d) * in2(d),
        pass_elements=dense,
        workspace_elements=dense,
    )


def pair_rank(d: Dimensions) -> int:
    inner = d["rank"] if factored(d) else min(out2(d), in2(d))
    return min(out1(d), in1(d)) * inner


METHOD = Method(
    name="lokr",
    title="LoKr",
    paper="arXiv:2309.14859",
    tensors=(
        TensorSpec("lokr_w1", (out1, in1), "constant", 0.0, peft_key="lokr_w1"),
        TensorSpec("lokr_w2", (out2, in2), "kaiming_uniform", where=whole, peft_key="lokr_w2"),
        TensorSpec(
            "lokr_w2_a", (out2, "rank"), "kaiming_uniform", where=factored, peft_key="lokr_w2_a"
        ),
        TensorSpec(
            "lokr_w2_b", ("rank", in2), "kaiming_uniform", where=factored, peft_key="lokr_w2_b"
        ),
    ),
    costs={"target": cost},
    scaling=lambda rank, alpha: alpha / rank,
    ranks=(4, 8, 16, 32),
    default_alpha=float,
    learning_rate=3e-3,
    converts_to=Conversion(pair_rank),
    peft_config={"peft_type": "LOKR"},
)
