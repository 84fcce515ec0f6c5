"""RandLoRA (Albert et al., 2025, arXiv 2502.00987): a full-rank sum of scaled random pairs.

    W' = W + s sum_k B_k diag(lambda_k) A_k diag(gamma_k),   as many pairs as fill the rank

The random A and B are shared by all targets and regenerated from the seed.
"""

from planner.method import TRUNCATED, Cost, Dimensions, Method, TensorSpec


def pairs(d: Dimensions) -> int:
    return -(-d["narrow"] // d["rank"]) if d["rank"] else 0


def max_pairs(d: Dimensions) -> int:
    return -(-d["max_narrow"] // d["rank"])


def cost(d: Dimensions) -> Cost:
    width = d["rank"] * pairs(d)
    wide = d["in"] > d["out"]
    # PEFT multiplies x by all pairs side by side and scales their narrow factor in every pass; only
    # that factor is trained, so only what it is applied to is kept.
    return Cost(
        multiplications=width * (d["in"] + d["out"]),
        saved_elements=width if wide else 0,
        saves_input=not wide,
        pass_multiplications=2 * width * d["narrow"],
        pass_elements=width * d["narrow"],
    )


METHOD = Method(
    name="randlora",
    title="RandLoRA",
    paper="arXiv:2502.00987",
    tensors=(
        TensorSpec("randlora_lambda", ("rank", pairs), "constant", 0.0, peft_key="randlora_lambda"),
        TensorSpec(
            "randlora_gamma",
            (pairs, "narrow"),
            "reciprocal_width",
            peft_key="randlora_gamma",
        ),
        TensorSpec(
            "randlora_A",
            ("rank", 1, "max_narrow"),
            "random_basis",
            trainable=False,
            scope="model",
            seeded=True,
            peft_key="randlora_A",
        ),
        TensorSpec(
            "randlora_B",
            ("max_wide", max_pairs, "rank"),
            "random_basis",
            trainable=False,
            scope="model",
            seeded=True,
            peft_key="randlora_B",
        ),
    ),
    costs={"target": cost},
    scaling=lambda rank, alpha: alpha / rank,
    ranks=(16, 32, 64),
    default_alpha=lambda rank: 20.0 * rank,
    drops_input=True,
    learning_rate=1e-4,
    serves=("merged",),
    converts_to=TRUNCATED,
    peft_config={"peft_type": "RANDLORA"},
)
