"""LoftQ (Li et al., 2023, arXiv 2310.08659): B A starts as what quantising W loses.

One alternation, whose quantised base is the plain one, so that tenants share it; more
alternations would give each rank a base of its own.
"""

from dataclasses import replace

from planner.methods.lora import METHOD as LORA

INITIALIZERS = {"lora_A": "quantization_loss_right", "lora_B": "quantization_loss_left"}

METHOD = replace(
    LORA,
    name="loftq",
    title="LoftQ",
    paper="arXiv:2310.08659",
    builds=False,
    tensors=tuple(spec._replace(initializer=INITIALIZERS[spec.name]) for spec in LORA.tensors),
    default_alpha=float,
    formats=("nf4",),
    needs_weight="at_initialization",
    optimizer="paged_adamw8bit",
    peft_config={"peft_type": "LORA", "init_lora_weights": "loftq"},
)
