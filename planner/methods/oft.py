"""OFT (Qiu et al., 2023, arXiv 2306.07280): x is rotated in blocks, y = W (R x).

R is block-diagonal; each block is the Cayley transform of a skew matrix, whose strict upper
triangle is trained. Where the block size does not divide the width, the nearest one that does is
taken, as PEFT does.
"""

from planner.method import TRUNCATED, Cost, Dimensions, Method, TensorSpec


def block(d: Dimensions) -> int:
    """The divisor of the width that is nearest to the block size, the smaller of two."""
    width = d["in"]
    wanted = min(d["block_size"], width)
    near = (size for off in range(width) for size in (wanted - off, wanted + off) if size > 0)
    return next(size for size in near if width % size == 0)


def blocks(d: Dimensions) -> int:
    return d["in"] // block(d)


def triangle(d: Dimensions) -> int:
    return block(d) * (block(d) - 1) // 2


def cost(d: Dimensions) -> Cost:
    size = block(d)
    # PEFT sums a series of five terms in every pass, and keeps four products.
    return Cost(
        multiplications=d["in"] * size,
        saves_input=True,
        row_elements=d["in"] * size,
        pass_multiplications=4 * d["in"] * size**2,
        pass_elements=4 * d["in"] * size,
    )


def misfit(d: Dimensions) -> str | None:
    return f"blocks of 1 of its width {d['in']} have nothing to rotate" if block(d) == 1 else None


METHOD = Method(
    name="oft",
    title="OFT",
    paper="arXiv:2306.07280",
    tensors=(TensorSpec("oft_R", (blocks, triangle), "constant", 0.0, peft_key="oft_R.weight"),),
    costs={"target": cost},
    ranks=(8, 16, 32, 64, 128),
    size="block_size",
    misfit=misfit,
    learning_rate=1e-4,
    converts_to=TRUNCATED,
    peft_config={"peft_type": "OFT"},
)
