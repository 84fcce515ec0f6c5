"""How a tenant is trained: learning rate, length, and how often to look."""

import math

from planner.adapters import Adapter
from planner.plan import Training
from planner.scenario import Scenario

REFERENCE_WIDTH = 4096
"""Width of the 7B and 8B models on which the methods' own rates were published."""
WIDTH_EXPONENT = 0.781
LARGEST_FACTOR = 5.0
"""Rates rise with falling width to about 1e-3 for LoRA; beyond that nothing is published."""
DEFAULT_EPOCHS = 3.0


def learning_rate(scenario: Scenario, adapter: Adapter) -> float:
    """The method's rate times (4096 / width) ^ 0.781, two digits (claim-learning-rate).

    Vectors that scale activations keep their rate: the rule is about products with a weight.
    """
    override = scenario.spec.training.learning_rate
    if override is not None:
        return override
    rate = adapter.method.learning_rate
    if adapter.method.scaling is not None or adapter.method.trains_base:
        factor = (REFERENCE_WIDTH / scenario.architecture.hidden) ** WIDTH_EXPONENT
        rate *= min(factor, LARGEST_FACTOR)
    return float(f"{rate:.2g}")


def training(scenario: Scenario, steps_per_epoch: int) -> Training:
    """The schedule; evaluations and checkpoints come at least four times in a short run."""
    wanted = scenario.spec.training
    epochs = wanted.epochs or DEFAULT_EPOCHS
    total = wanted.max_steps or max(1, math.ceil(steps_per_epoch * epochs))
    defaults = Training.model_construct()
    return Training.model_construct(
        epochs=epochs,
        max_steps=wanted.max_steps,
        packing=wanted.packing,
        evaluate_every=wanted.evaluate_every or min(defaults.evaluate_every, max(1, total // 4)),
        checkpoint_every=wanted.checkpoint_every
        or min(defaults.checkpoint_every, max(1, total // 4)),
        patience=wanted.patience or defaults.patience,
        seed=wanted.seed,
    )
