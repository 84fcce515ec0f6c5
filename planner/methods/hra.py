"""HRA (Yuan et al., 2024, arXiv 2405.17484): x is reflected r times, y = W (H_r ... H_1 x).

H_j = I - 2 u_j u_j^T / |u_j|^2; vectors start in equal pairs, which cancel. In the compact form
I - U T U^T the reflections are a pair relative to W.
"""

from planner.method import SAME_RANK, Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    rank, width = d["rank"], d["in"]
    # PEFT multiplies the reflections out to a matrix [in, in], and W by it, in every pass.
    return Cost(
        saves_input=True,
        pass_multiplications=2 * rank * width**2 + width**3 + width**2 * d["out"],
        pass_elements=(rank + 1) * width**2 + width * d["out"],
        workspace_elements=2 * width**2,
    )


METHOD = Method(
    name="hra",
    title="HRA",
    paper="arXiv:2405.17484",
    tensors=(TensorSpec("hra_u", ("in", "rank"), "equal_pairs", peft_key="hra_u"),),
    costs={"target": cost},
    ranks=(4, 8, 16, 32),
    misfit=lambda d: (
        "an odd number of reflections has no start that changes nothing" if d["rank"] % 2 else None
    ),
    learning_rate=1e-3,
    converts_to=SAME_RANK,
    peft_config={"peft_type": "HRA"},
)
