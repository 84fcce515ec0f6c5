"""IA3 (Liu et al., 2022, arXiv 2205.05638): scale keys and values, and the MLP's down input.

Of any other linear that is named the output is scaled, as by PEFT outside feedforward_modules.
"""

from collections.abc import Mapping

from planner.method import ALL_LINEAR, TRUNCATED, Method, Site, TensorSpec
from planner.update import InputScale, OutputScale, OutputShift, Tensor, Update

SCALED_INPUT = ("mlp.down",)
SCALED_OUTPUT = tuple(role for role in (*ALL_LINEAR, "head") if role not in SCALED_INPUT)


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    scale = tensors["ia3_l"].reshape(-1)
    if site.target.role in SCALED_INPUT:
        return (InputScale(scale),)
    if site.bias is None:
        return (OutputScale(scale),)
    # The paper scales the whole output, bias included; OutputScale leaves the bias alone.
    return (OutputScale(scale), OutputShift((scale - 1.0) * site.bias))


METHOD = Method(
    name="ia3",
    title="IA3",
    paper="arXiv:2205.05638",
    builds=True,
    tensors=(
        TensorSpec("ia3_l", ("out", 1), "constant", 1.0, roles=SCALED_OUTPUT, peft_key="ia3_l"),
        TensorSpec("ia3_l", (1, "in"), "constant", 1.0, roles=SCALED_INPUT, peft_key="ia3_l"),
    ),
    update=update,
    # Keys and values, wherever they are: a fused product is scaled with its queries.
    targets=("attention.key", "attention.value", "attention.qkv", "mlp.down"),
    learning_rate=5e-3,
    converts_to=TRUNCATED,
    peft_config={"peft_type": "IA3"},
)
