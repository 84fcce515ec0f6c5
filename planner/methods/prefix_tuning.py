"""Prefix tuning (Li and Liang, 2021, arXiv 2101.00190): trained keys and values before a text."""

from planner.method import Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    """Of one block: attention over more keys."""
    tokens = d["virtual_tokens"]
    return Cost(
        multiplications=2 * tokens * d["heads"] * d["head_dim"],
        row_elements=2 * tokens * d["kv"],
    )


METHOD = Method(
    name="prefix_tuning",
    title="prefix tuning",
    paper="arXiv:2101.00190",
    tensors=(
        TensorSpec(
            "prompt_embeddings",
            ("virtual_tokens", "layers", 2, "kv"),
            "normal",
            1.0,
            scope="model",
            peft_key="prompt_embeddings",
        ),
    ),
    costs={"layer": cost},
    ranks=(10, 20, 50, 100, 200),
    size="virtual_tokens",
    targets=(),
    learning_rate=5e-3,
    adds_tokens="cache",
    serves=("unmerged",),
    peft_config={"peft_type": "PREFIX_TUNING"},
)
