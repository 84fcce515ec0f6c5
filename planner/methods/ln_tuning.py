"""LN-tuning (Zhao et al., 2023, arXiv 2312.11420): only norms are trained, weights and biases."""

from planner.method import Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    # The gradient of the weight needs the normalised input.
    return Cost(saved_elements=d["width"], row_elements=d["width"] * (1 + d["bias"]))


METHOD = Method(
    name="ln_tuning",
    title="LN-tuning",
    paper="arXiv:2312.11420",
    tensors=(
        TensorSpec(
            "ln_tuning_weight",
            ("width",),
            "base_weight",
            scope="norm",
            peft_key="ln_tuning_layers.weight",
        ),
        TensorSpec(
            "ln_tuning_bias",
            ("width",),
            "base_bias",
            scope="norm",
            where=lambda d: d["bias"] == 1,
            peft_key="ln_tuning_layers.bias",
        ),
    ),
    costs={"norm": cost},
    targets=(),
    learning_rate=1e-3,
    peft_config={"peft_type": "LN_TUNING"},
)
