"""QLoRA (Dettmers et al., 2023, arXiv 2305.14314): LoRA on an NF4 base, paged optimizer states."""

from dataclasses import replace

from planner.methods.lora import METHOD as LORA

METHOD = replace(
    LORA,
    name="qlora",
    title="QLoRA",
    paper="arXiv:2305.14314",
    formats=("nf4",),
    optimizer="paged_adamw8bit",
)
