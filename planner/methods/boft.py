"""BOFT (Liu et al., 2023, arXiv 2311.06243): OFT by butterfly factors, and a scale of each output.

One factor, as PEFT takes without its CUDA kernel. PEFT stores whole blocks and uses their skew
parts.
"""

from planner.method import TRUNCATED, Cost, Dimensions, Method, TensorSpec

FACTORS = 1


def input_blocks(d: Dimensions) -> int:
    return d["in"] // d["block_size"]


def cost(d: Dimensions) -> Cost:
    width, out = d["in"], d["out"]
    # PEFT forms the rotation [in, in], its blocks and permutations, in every pass.
    return Cost(
        multiplications=width**2 + out,
        saved_elements=out,
        saves_input=True,
        row_elements=FACTORS * width * d["block_size"] + out,
        pass_multiplications=3 * FACTORS * width**3,
        pass_elements=2 * FACTORS * width**2,
        workspace_elements=2 * FACTORS * width**2,
    )


def misfit(d: Dimensions) -> str | None:
    if d["in"] % d["block_size"]:
        return f"blocks of {d['block_size']} do not fill its width {d['in']}"
    return None


METHOD = Method(
    name="boft",
    title="BOFT",
    paper="arXiv:2311.06243",
    tensors=(
        TensorSpec(
            "boft_R",
            (FACTORS, input_blocks, "block_size", "block_size"),
            "constant",
            0.0,
            peft_key="boft_R",
        ),
        TensorSpec("boft_s", ("out", 1), "constant", 1.0, peft_key="boft_s"),
    ),
    costs={"target": cost},
    ranks=(4, 8, 16),
    size="block_size",
    misfit=misfit,
    learning_rate=3e-4,
    serves=("merged",),
    converts_to=TRUNCATED,
    peft_config={"peft_type": "BOFT"},
)
