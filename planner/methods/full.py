"""Full fine-tuning: every parameter of the model is trained; W becomes W'."""

from collections.abc import Mapping

from planner.method import TRUNCATED, Method, Site
from planner.update import Dense, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    return (Dense(site.weight),)


METHOD = Method(
    name="full",
    title="full fine-tuning",
    paper=None,
    builds=True,
    tensors=(),
    update=update,
    formats=("fp32", "bf16"),
    needs_weight="every_step",
    trains_base=True,
    learning_rate=2e-5,
    serves=("merged",),
    converts_to=TRUNCATED,
)
