"""What a training program does that decides its memory, each fact a named cause of bytes.

Read in the programs' own sources: transformers and PEFT, LitGPT (finetune/lora.py, model.py,
lora.py, adapter_v2.py), bitsandbytes (autograd/_functions.py), Lightning Fabric (precision
plugins), torch (optim/adamw.py), and this project's compiler.
"""

from collections.abc import Mapping
from typing import NamedTuple

from planner.cost.weights import QUANTISED


class Framework(NamedTuple):
    """The facts, true or false of a program; bytes are per element.

    casts_adapters           a copy of the adapters in the arithmetic's type lives through a pass
    casts_inputs             an adapter computes in its own type: every adapted linear keeps a copy
                             of its input in that type
    autocasts                the arithmetic of adapters is that of the products: the copy is in its
                             type, and what a quantised product reads needs none
    upcasts_stream           on a quantised base all else is fp32, and so is what flows between its
                             products; each of them reads a copy in the arithmetic's type
    dense_in_compute         dense weights are held in the arithmetic's type, whatever their format
    master_bytes             of a trained base's number, whatever its format, beside a copy in the
                             arithmetic's type; None where it is in its format
    repeats_keys             grouped keys and values are copied to every head of their group
    fuses_qkv                query, key and value are one product with one adapter, and value stays
                             a view of it
    fuses_gelu               tanh GELU is one kernel; written out it keeps four tensors
    roots_at_once            AdamW takes the square roots of all second moments before it updates
    drops                    the model's own dropout is on, a byte for each number that it may drop
    keeps_quantised_inputs   formats of weights whose products keep their input
    keeps_last_graph         what the last micro-batch holds outside autograd, and its logits, live
                             until the next one's loss replaces them
    quantises_experts        routed experts are linears, not one tensor that no quantiser replaces
    quantises_head           the head is quantised with the other linears
    ties_head                a tied head is the embedding's own memory
    dequantised_bytes        per weight while one is dequantised, by arithmetic
    logit_bytes              per logit of a full loss at its largest, by arithmetic
    kept_logit_bytes         per logit when the backward pass reaches the head, by arithmetic
    head_chunk_tokens        the head is read in pieces of so many tokens of a sequence; 0 is whole
    """

    name: str
    casts_adapters: bool
    casts_inputs: bool
    autocasts: bool
    upcasts_stream: bool
    dense_in_compute: bool
    master_bytes: int | None
    repeats_keys: bool
    fuses_qkv: bool
    fuses_gelu: bool
    roots_at_once: bool
    drops: bool
    keeps_quantised_inputs: tuple[str, ...]
    keeps_last_graph: bool
    quantises_experts: bool
    quantises_head: bool
    ties_head: bool
    dequantised_bytes: Mapping[str, float]
    logit_bytes: Mapping[str, int]
    kept_logit_bytes: Mapping[str, int]
    head_chunk_tokens: int

    def __hash__(self) -> int:
        return hash(self.name)


PARETUNE = Framework(
    name="paretune",
    casts_adapters=True,
    casts_inputs=False,
    autocasts=False,
    upcasts_stream=False,
    dense_in_compute=True,
    master_bytes=4,
    repeats_keys=True,
    fuses_qkv=False,
    fuses_gelu=False,
    roots_at_once=False,
    drops=False,
    keeps_quantised_inputs=(),
    keeps_last_graph=False,
    quantises_experts=False,
    quantises_head=False,
    ties_head=True,
    # fp32 values beside the codes as 32-bit indices; then beside the cast and two fp32 per block.
    dequantised_bytes={"fp32": 6.0, "bf16": 6.125},
    # A full loss for comparison: the fp32 log-softmax, and both its gradients.
    logit_bytes={"fp32": 12, "bf16": 12},
    kept_logit_bytes={"fp32": 8, "bf16": 6},
    head_chunk_tokens=0,
)
"""This project's compiler."""

PEFT = PARETUNE._replace(
    name="peft",
    casts_adapters=False,
    casts_inputs=True,
    dense_in_compute=False,
    master_bytes=None,
    # torch's own default on a GPU (optim/adamw.py, _multi_tensor_adamw).
    roots_at_once=True,
    drops=True,
    keeps_quantised_inputs=("int8",),
    # A copy in the arithmetic's type.
    dequantised_bytes={"fp32": 4.0, "bf16": 2.0},
    # The model's output keeps its logits; then log-softmax and both gradients, in fp32.
    logit_bytes={"fp32": 16, "bf16": 14},
)
"""transformers 5 with PEFT in a loop of one's own: fp32 adapters on the model's type, all logits;
bitsandbytes from 0.43.2 on, whose 4-bit product keeps no input, and whose 8-bit one does.
"""

TRAINER = PEFT._replace(
    name="trainer",
    autocasts=True,
    # Fused from torch 2.8 on.
    roots_at_once=False,
    # The model's output is gone before the backward pass.
    logit_bytes={"fp32": 12, "bf16": 12},
)
"""transformers 5 with PEFT, through its Trainer in mixed precision."""

TRAINER_2024 = TRAINER._replace(
    name="trainer-2024",
    roots_at_once=True,
    keeps_quantised_inputs=QUANTISED,
    quantises_experts=True,
)
"""transformers 4, whose routed experts are linears, with torch's default AdamW and bitsandbytes
before 0.43.2.
"""

TRL_2024 = TRAINER_2024._replace(name="trl-2024", upcasts_stream=True)
"""That through TRL's SFTTrainer, which calls PEFT's prepare_model_for_kbit_training."""

LITGPT_2023 = Framework(
    name="litgpt-2023",
    casts_adapters=False,
    casts_inputs=False,
    autocasts=False,
    upcasts_stream=False,
    dense_in_compute=False,
    master_bytes=None,
    repeats_keys=True,
    fuses_qkv=True,
    fuses_gelu=True,
    roots_at_once=True,
    drops=False,
    keeps_quantised_inputs=QUANTISED,
    keeps_last_graph=False,
    quantises_experts=True,
    quantises_head=True,
    ties_head=False,
    # bitsandbytes dequantises to fp16, where Lightning quantised from, then casts.
    dequantised_bytes={"fp32": 6.0, "bf16": 4.0},
    # Fabric returns outputs in fp32, and cross entropy keeps their log-softmax.
    logit_bytes={"fp32": 8, "bf16": 8},
    kept_logit_bytes={"fp32": 8, "bf16": 8},
    head_chunk_tokens=128,
)
"""LitGPT of October 2023: the longest example comes first, so no graph is left from before it."""

LITGPT_2024 = LITGPT_2023._replace(
    name="litgpt-2024",
    keeps_last_graph=True,
    # Those of the last micro-batch, and this one's while Fabric casts them.
    logit_bytes={"fp32": 12, "bf16": 10},
)
"""LitGPT of 2024, which shuffles: a micro-batch as long as this one may have come before."""

FRAMEWORKS = {
    f.name: f for f in (PARETUNE, PEFT, TRAINER, TRAINER_2024, TRL_2024, LITGPT_2023, LITGPT_2024)
}
