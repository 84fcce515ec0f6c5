"""rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732): LoRA with the scale alpha / sqrt(rank)."""

from dataclasses import replace

from planner.methods.lora import METHOD as LORA

METHOD = replace(
    LORA,
    name="rslora",
    title="rsLoRA",
    paper="arXiv:2312.03732",
    scaling=lambda rank, alpha: alpha / rank**0.5,
    default_alpha=lambda rank: 2.0 * rank**0.5,
    peft_config={"peft_type": "LORA", "use_rslora": True},
)
