"""LoRA+ (Hayou et al., 2024, arXiv 2402.12354): B learns 16 times as fast as A."""

from dataclasses import replace

from planner.methods.lora import METHOD as LORA

RATIO = 16.0

METHOD = replace(
    LORA,
    name="lora_plus",
    title="LoRA+",
    paper="arXiv:2402.12354",
    tensors=tuple(
        spec._replace(learning_rate_multiplier=RATIO) if spec.name == "lora_B" else spec
        for spec in LORA.tensors
    ),
    # B's rate is the effective one, so A starts lower than plain LoRA's.
    learning_rate=5e-5,
)
