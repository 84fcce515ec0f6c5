"""DoRA (Liu et al., 2024, arXiv 2402.09353): y = m / ||W + s B A|| * ((W + s B A) x)."""

from collections.abc import Mapping
from dataclasses import replace

from planner.method import TRUNCATED, Site, TensorSpec
from planner.methods.lora import METHOD as LORA
from planner.update import LowRank, OutputScale, Tensor, Update, detached, row_norm


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    a, b = tensors["lora_A"], site.scaling * tensors["lora_B"]
    # The paper treats the norm as a constant of the backward pass (section 4.3).
    scale = tensors["lora_magnitude_vector"] / detached(row_norm(site.weight, a, b))
    return (OutputScale(scale), LowRank(a, b, output_scale=scale))


METHOD = replace(
    LORA,
    name="dora",
    title="DoRA",
    paper="arXiv:2402.09353",
    tensors=(
        *LORA.tensors,
        TensorSpec("lora_magnitude_vector", ("out",), "row_norm", peft_key="lora_magnitude_vector"),
    ),
    update=update,
    needs_weight="every_step",
    learning_rate=1e-4,
    converts_to=TRUNCATED,
    peft_config={"peft_type": "LORA", "use_dora": True},
)
