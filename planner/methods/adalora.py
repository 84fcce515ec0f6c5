"""AdaLoRA (Zhang et al., 2023, arXiv 2303.10512): y += c B ((E * A) x), entries of E pruned.

The rank is the one that training starts with; a schedule sets the least important entries of E
to zero until the budget, two thirds of it by default, is met. An orthogonality loss is added.
"""

from collections.abc import Mapping
from dataclasses import replace

from planner.method import Site, TensorSpec
from planner.methods.lora import METHOD as LORA
from planner.update import LowRank, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    scaled = tensors["lora_E"] * tensors["lora_A"]
    return (LowRank(scaled, site.scaling * tensors["lora_B"]),)


METHOD = replace(
    LORA,
    name="adalora",
    title="AdaLoRA",
    paper="arXiv:2303.10512",
    builds=False,
    tensors=(
        TensorSpec("lora_A", ("rank", "in"), "normal", 0.02, peft_key="lora_A"),
        TensorSpec("lora_B", ("out", "rank"), "normal", 0.02, peft_key="lora_B"),
        TensorSpec("lora_E", ("rank", 1), "constant", 0.0, peft_key="lora_E"),
    ),
    update=update,
    ranks=(6, 12, 24, 48, 96),
    learning_rate=1e-3,
    peft_config={"peft_type": "ADALORA"},
)
