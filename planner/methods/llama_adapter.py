"""LLaMA-Adapter (Zhang et al., 2023, arXiv 2303.16199): a gated second attention over a prompt.

Keys and values of the prompt come from the block's own projections; the gate starts at zero.
Every block has one; the paper left out the lowest two of 32.
"""

from planner.method import Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    length, queries = d["prompt_length"], d["heads"] * d["head_dim"]
    # Scores, their sum of values, and the output projection once more.
    return Cost(
        multiplications=2 * length * queries + queries * d["hidden"],
        saved_elements=length * d["heads"] + queries + d["hidden"],
        row_elements=length * d["hidden"] + 1,
        pass_multiplications=2 * length * d["hidden"] * d["kv"],
        pass_elements=2 * length * d["kv"],
    )


METHOD = Method(
    name="llama_adapter",
    title="LLaMA-Adapter",
    paper="arXiv:2303.16199",
    tensors=(
        TensorSpec(
            "adaption_prompt",
            (1, "prompt_length", "hidden"),
            "normal",
            1.0,
            scope="layer",
            peft_key="adaption_prompt",
        ),
        TensorSpec("adaption_gate", (1,), "constant", 0.0, scope="layer", peft_key="adaption_gate"),
    ),
    costs={"layer": cost},
    ranks=(10, 30, 100),
    size="prompt_length",
    targets=(),
    learning_rate=5e-3,
    serves=("unmerged",),
    peft_config={"peft_type": "ADAPTION_PROMPT"},
)
