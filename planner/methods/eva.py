"""EVA (Paischer et al., 2024, arXiv 2410.07170): A starts at the main directions of its inputs.

Ranks can then move between linears by the variance they explain, within the same budget; the
counts here are those of equal ranks.
"""

from dataclasses import replace

from planner.methods.lora import METHOD as LORA

METHOD = replace(
    LORA,
    name="eva",
    title="EVA",
    paper="arXiv:2410.07170",
    builds=False,
    tensors=tuple(
        spec._replace(initializer="principal_input") if spec.name == "lora_A" else spec
        for spec in LORA.tensors
    ),
    peft_config={"peft_type": "LORA", "init_lora_weights": "eva"},
)
