"""LoRA (Hu et al., 2021, arXiv 2106.09685): y += (alpha / rank) B A x."""

from collections.abc import Mapping

from planner.method import SAME_RANK, Method, Site, TensorSpec
from planner.update import LowRank, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    return (LowRank(tensors["lora_A"], site.scaling * tensors["lora_B"]),)


METHOD = Method(
    name="lora",
    title="LoRA",
    paper="arXiv:2106.09685",
    builds=True,
    tensors=(
        TensorSpec("lora_A", ("rank", "in"), "kaiming_uniform", peft_key="lora_A.weight"),
        TensorSpec("lora_B", ("out", "rank"), "constant", 0.0, peft_key="lora_B.weight"),
    ),
    update=update,
    scaling=lambda rank, alpha: alpha / rank,
    ranks=(4, 8, 16, 32, 64, 128),
    default_alpha=lambda rank: 2.0 * rank,
    drops_input=True,
    learning_rate=2e-4,
    converts_to=SAME_RANK,
    peft_config={"peft_type": "LORA"},
)
