"""LoHa (Hyeon-Woo et al., 2021, arXiv 2108.06098): W' = W + s (B1 A1) * (B2 A2), element-wise.

Two pairs of rank r multiply to a difference of rank up to r squared.
"""

from planner.method import Conversion, Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    dense = d["in"] * d["out"]
    # PEFT forms the dense difference in every pass, keeps it, and multiplies x by it.
    return Cost(
        multiplications=dense,
        saves_input=True,
        pass_multiplications=2 * d["rank"] * dense,
        pass_elements=dense,
        workspace_elements=2 * dense,
    )


METHOD = Method(
    name="loha",
    title="LoHa",
    paper="arXiv:2108.06098",
    tensors=(
        TensorSpec("hada_w1_a", ("out", "rank"), "kaiming_uniform", peft_key="hada_w1_a"),
        TensorSpec("hada_w1_b", ("rank", "in"), "kaiming_uniform", peft_key="hada_w1_b"),
        TensorSpec("hada_w2_a", ("out", "rank"), "kaiming_uniform", peft_key="hada_w2_a"),
        TensorSpec("hada_w2_b", ("rank", "in"), "constant", 0.0, peft_key="hada_w2_b"),
    ),
    costs={"target": cost},
    scaling=lambda rank, alpha: alpha / rank,
    ranks=(4, 8, 16, 32),
    default_alpha=float,
    learning_rate=1e-3,
    converts_to=Conversion(lambda d: min(d["rank"] ** 2, d["narrow"])),
    peft_config={"peft_type": "LOHA"},
)
