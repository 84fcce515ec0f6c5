"""OLoRA (Büyükakyüz, 2024, arXiv 2406.01775): PiSSA's form, started from W = QR."""

from dataclasses import replace

from planner.methods.pissa import METHOD as PISSA

INITIALIZERS = {"principal_left": "orthonormal_left", "principal_right": "orthonormal_right"}

METHOD = replace(
    PISSA,
    name="olora",
    title="OLoRA",
    paper="arXiv:2406.01775",
    builds=False,
    tensors=tuple(
        spec._replace(initializer=INITIALIZERS[spec.initializer]) for spec in PISSA.tensors
    ),
    peft_config={"peft_type": "LORA", "init_lora_weights": "olora"},
)
