"""Prompt tuning (Lester et al., 2021, arXiv 2104.08691): trained embeddings before each text.

An encoder-decoder has a prompt for either.
"""

from planner.method import Cost, Dimensions, Method, TensorSpec


def tokens(d: Dimensions) -> int:
    return d["virtual_tokens"] * d["stacks"]


def cost(d: Dimensions) -> Cost:
    return Cost(row_elements=tokens(d) * d["hidden"])


METHOD = Method(
    name="prompt_tuning",
    title="prompt tuning",
    paper="arXiv:2104.08691",
    tensors=(
        TensorSpec(
            "prompt_embeddings",
            (tokens, "hidden"),
            "sampled_embeddings",
            scope="model",
            peft_key="prompt_embeddings",
        ),
    ),
    costs={"model": cost},
    ranks=(10, 20, 50, 100, 200),
    size="virtual_tokens",
    targets=(),
    # The paper's 0.3 is for Adafactor on T5; PEFT's benchmark learned from 1e-3 on.
    learning_rate=1e-2,
    adds_tokens="input",
    serves=("unmerged",),
    peft_config={"peft_type": "PROMPT_TUNING"},
)
