"""PiSSA (Meng et al., 2024, arXiv 2404.02948): LoRA that starts from W's top singular directions.

The paper subtracts the starting pair from the base. Tenants share one base here, so the starting
pair stays in the update as a frozen second pair; it is folded into the base for training only.
"""

from collections.abc import Mapping
from dataclasses import replace

from planner.method import Conversion, Site, TensorSpec
from planner.methods.lora import METHOD as LORA
from planner.update import LowRank, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    return (
        LowRank(tensors["lora_A"], site.scaling * tensors["lora_B"]),
        LowRank(tensors["initial_A"], -site.scaling * tensors["initial_B"]),
    )


METHOD = replace(
    LORA,
    name="pissa",
    title="PiSSA",
    paper="arXiv:2404.02948",
    tensors=(
        TensorSpec("lora_A", ("rank", "in"), "principal_right", peft_key="lora_A.weight"),
        TensorSpec("lora_B", ("out", "rank"), "principal_left", peft_key="lora_B.weight"),
        TensorSpec("initial_A", ("rank", "in"), "principal_right", trainable=False),
        TensorSpec("initial_B", ("out", "rank"), "principal_left", trainable=False),
    ),
    update=update,
    default_alpha=float,
    needs_weight="at_initialization",
    learning_rate=1e-4,
    # The pair and the one it started from.
    converts_to=Conversion(lambda d: 2 * d["rank"]),
    peft_config={"peft_type": "LORA", "init_lora_weights": "pissa"},
)
