"""mT5 (Xue et al., 2020) and mT0: T5 v1.1 with many languages' vocabulary."""

from planner.architecture.families import t5

FAMILY = t5.FAMILY._replace(
    activation="gelu_tanh",
    options={**t5.FAMILY.options, "feed_forward_proj": "gated-gelu"},
    tied=False,
)
