"""VB-LoRA (Li et al., 2024, arXiv 2405.15179): A and B mixed from one bank of short vectors.

Each stretch of 256 numbers of A and B is a softmax over the two best of 256 shared vectors.
"""

from planner.method import SAME_RANK, Cost, Dimensions, Method, TensorSpec

VECTORS = 256
LENGTH = 256


def input_stretches(d: Dimensions) -> int:
    return d["in"] // LENGTH


def output_stretches(d: Dimensions) -> int:
    return d["out"] // LENGTH


def cost(d: Dimensions) -> Cost:
    pair = d["rank"] * (d["in"] + d["out"])
    # A and B are formed from the bank in every pass; the two vectors of each stretch are kept too.
    return Cost(
        multiplications=pair,
        saved_elements=d["rank"],
        saves_input=True,
        pass_multiplications=2 * pair,
        pass_elements=3 * pair,
    )


def misfit(d: Dimensions) -> str | None:
    odd = [side for side in (d["out"], d["in"]) if side % LENGTH]
    return f"its side {odd[0]} is no multiple of {LENGTH}" if odd else None


METHOD = Method(
    name="vb_lora",
    title="VB-LoRA",
    paper="arXiv:2405.15179",
    tensors=(
        TensorSpec(
            "vblora_logits_A",
            ("rank", input_stretches, VECTORS),
            "normal",
            0.1,
            learning_rate_multiplier=10.0,
            peft_key="vblora_logits_A",
        ),
        TensorSpec(
            "vblora_logits_B",
            (output_stretches, "rank", VECTORS),
            "normal",
            0.1,
            learning_rate_multiplier=10.0,
            peft_key="vblora_logits_B",
        ),
        TensorSpec(
            "vblora_vector_bank",
            (VECTORS, LENGTH),
            "uniform",
            0.02,
            scope="model",
            peft_key="vblora_vector_bank",
        ),
    ),
    costs={"target": cost},
    ranks=(4, 8),
    misfit=misfit,
    drops_input=True,
    learning_rate=1e-3,
    converts_to=SAME_RANK,
    peft_config={"peft_type": "VBLORA"},
)
