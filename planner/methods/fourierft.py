"""FourierFT (Gao et al., 2024, arXiv 2405.03003): W' = W + s Re(ifft2(F)), n entries of F trained.

Their places are drawn from the seed. Each is one cosine, of rank two.
"""

from math import log2

from planner.method import Conversion, Cost, Dimensions, Method, TensorSpec


def cost(d: Dimensions) -> Cost:
    dense = d["in"] * d["out"]
    # PEFT transforms a dense complex spectrum in every pass and keeps the real part.
    return Cost(
        multiplications=dense,
        saves_input=True,
        pass_multiplications=round(2 * dense * log2(dense)),
        pass_elements=dense + 4 * d["frequencies"],
        workspace_elements=4 * dense,
    )


METHOD = Method(
    name="fourierft",
    title="FourierFT",
    paper="arXiv:2405.03003",
    tensors=(
        TensorSpec(
            "fourierft_spectrum",
            ("frequencies",),
            "constant",
            0.0,
            peft_key="fourierft_spectrum",
        ),
    ),
    costs={"target": cost},
    ranks=(1000, 2000, 5000),
    size="frequencies",
    learning_rate=1e-2,
    converts_to=Conversion(lambda d: min(2 * d["frequencies"], d["narrow"])),
    peft_config={"peft_type": "FOURIERFT"},
)
