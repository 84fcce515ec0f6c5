"""A published training run as a case of `planner estimate`: with options that its user has.

What the run did by itself, and no option says, is not helped on: where a program's own adapter has
no name here, the run has no case.
"""

from collections.abc import Mapping
from typing import Any

import litgpt

from planner import Case
from planner.architecture import architecture

DROPOUT = 0.05
"""Of LitGPT's LoRA where nothing else is given (finetune/lora.py)."""
PREFIX_TOKENS = 10
PARTS_OF_ROLE = {
    "attention.query": {"query"},
    "attention.key": {"key"},
    "attention.value": {"value"},
    "attention.qkv": set(litgpt.QKV),
    "attention.output": {"projection"},
    "mlp.gate": {"mlp"},
    "mlp.up": {"mlp"},
    "mlp.gate_up": {"mlp"},
    "mlp.down": {"mlp"},
    "head": {"head"},
}
"""LitGPT's names of the parts that a linear of a role is."""


def case(
    row: Mapping[str, str], config: dict[str, Any], format_: str, framework: str
) -> Case | str:
    """The case of a row, or why there is none."""
    common = {
        "model": config,
        "format": format_,
        "compute": "bf16",
        "batch_size": int(row["micro_batch"]),
        "gradient_accumulation": 1 if framework == "litgpt-2023" else 2,
        "sequence_length": int(row["seq_len"]),
        "optimizer": row["optimizer"].lower(),
        "loss": "full",
        "framework": framework,
    }
    match row["method"]:
        case "Full FT":
            return Case(**common, method="full")
        case "LLaMA-Adapter":
            return Case(**common, method="llama_adapter", rank=PREFIX_TOKENS, adapter_dtype="bf16")
        case "LLaMA-Adapter-v2":
            return "no method is LLaMA-Adapter v2"
    parts = litgpt.places(row["target_modules"])
    roles = {target.role for target in architecture(config).targets}
    targets = [role for role, of in PARTS_OF_ROLE.items() if role in roles and of <= parts]
    missing = parts - {part for role in targets for part in PARTS_OF_ROLE[role]}
    if missing:
        return f"{' and '.join(sorted(missing))} adapted, and no linear of the model is that alone"
    return Case(
        **common,
        method="lora",
        rank=int(row["rank"]),
        targets=tuple(targets),
        dropout=DROPOUT,
        adapter_dtype="bf16",
    )
