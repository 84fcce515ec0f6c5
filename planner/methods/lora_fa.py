"""LoRA-FA (Zhang et al., 2023, arXiv 2308.03303): A stays as it started, only B is trained.

The input of a linear need not be kept for the backward pass, only its rank projections A x.
"""

from dataclasses import replace

from planner.methods.lora import METHOD as LORA

METHOD = replace(
    LORA,
    name="lora_fa",
    title="LoRA-FA",
    paper="arXiv:2308.03303",
    tensors=tuple(spec._replace(trainable=spec.name == "lora_B") for spec in LORA.tensors),
)
