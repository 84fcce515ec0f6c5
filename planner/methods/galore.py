"""GaLore (Zhao et al., 2024, arXiv 2403.03507): full fine-tuning, Adam in a subspace of gradients.

The gradient of each linear is projected on its leading singular vectors along the smaller side;
the optimizer keeps two moments of the projection, and the projector.
"""

from dataclasses import replace

from planner.method import Dimensions
from planner.methods.full import METHOD as FULL


def optimizer_elements(d: Dimensions) -> int:
    rank = min(d["rank"], d["narrow"])
    return 2 * rank * d["wide"] + rank * d["narrow"]


METHOD = replace(
    FULL,
    name="galore",
    title="GaLore",
    paper="arXiv:2403.03507",
    builds=False,
    ranks=(128, 256, 512, 1024),
    optimizer="galore",
    optimizer_elements=optimizer_elements,
    # Updates are scaled by a quarter, so rates are above those of full fine-tuning.
    learning_rate=5e-3,
)
