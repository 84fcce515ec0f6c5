"""P-tuning (Liu et al., 2021, arXiv 2103.10385): prompt tuning through a three-layer perceptron.

The perceptron, as wide as the model, is used up: only the embeddings that it gives are stored.
"""

from dataclasses import replace

from planner.method import Dimension, TensorSpec
from planner.methods.prompt_tuning import METHOD as PROMPT_TUNING


def dense(name: str, out: Dimension, in_: Dimension) -> tuple[TensorSpec, TensorSpec]:
    """A layer of a network that only training needs."""
    return (
        TensorSpec(
            f"{name}.weight", (out, in_), "kaiming_uniform", scope="model", training_only=True
        ),
        TensorSpec(f"{name}.bias", (out,), "kaiming_uniform", scope="model", training_only=True),
    )


METHOD = replace(
    PROMPT_TUNING,
    name="p_tuning",
    title="P-tuning",
    paper="arXiv:2103.10385",
    tensors=(
        *PROMPT_TUNING.tensors,
        *dense("mlp_head.0", "hidden", "hidden"),
        *dense("mlp_head.2", "hidden", "hidden"),
        *dense("mlp_head.4", "hidden", "hidden"),
    ),
    learning_rate=1e-4,
    peft_config={"peft_type": "P_TUNING"},
)
