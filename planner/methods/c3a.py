"""C3A (Chen et al., 2024, arXiv 2407.19342): W' = W + a matrix of circulant blocks.

A block of size b is one kernel of b numbers; it is applied by Fourier transforms.
"""

from math import log2

from planner.method import TRUNCATED, Cost, Dimensions, Method, TensorSpec


def output_blocks(d: Dimensions) -> int:
    return d["out"] // d["block_size"]


def input_blocks(d: Dimensions) -> int:
    return d["in"] // d["block_size"]


def cost(d: Dimensions) -> Cost:
    size = d["block_size"]
    products = 2 * d["in"] * d["out"] // size
    transforms = round(2 * (d["in"] + d["out"]) * log2(size))
    # PEFT keeps x and transforms it again for the gradients.
    return Cost(
        multiplications=products + transforms,
        saves_input=True,
        pass_multiplications=round(2 * d["in"] * d["out"] / size * log2(size)),
    )


def misfit(d: Dimensions) -> str | None:
    size = d["block_size"]
    odd = [side for side in (d["out"], d["in"]) if side % size]
    return f"blocks of {size} do not fill its side {odd[0]}" if odd else None


METHOD = Method(
    name="c3a",
    title="C3A",
    paper="arXiv:2407.19342",
    tensors=(
        TensorSpec(
            "c3a_kernel",
            (
                output_blocks,
                input_blocks,
                "block_size",
            ),
            "constant",
            0.0,
            peft_key="c3a_kernel",
        ),
    ),
    costs={"target": cost},
    ranks=(64, 128, 256),
    size="block_size",
    misfit=misfit,
    learning_rate=0.3,
    serves=("merged",),
    converts_to=TRUNCATED,
    peft_config={"peft_type": "C3A"},
)
