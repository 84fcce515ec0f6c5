"""Pfeiffer adapters (Pfeiffer et al., 2020, arXiv 2005.00247): h += U f(D h) after the MLP.

The bottleneck is the model's width divided by the reduction; f is relu, as in AdapterHub.
"""

from planner.method import Cost, Dimensions, Method, TensorSpec


def bottleneck(d: Dimensions) -> int:
    return max(1, d["hidden"] // d["reduction"]) if d["reduction"] else 0


def port(name: str) -> tuple[TensorSpec, ...]:
    """The tensors of one adapter in every block, behind the sublayer of that name."""
    return (
        TensorSpec(f"{name}_down.weight", (bottleneck, "hidden"), "normal", 0.02, scope="layer"),
        TensorSpec(f"{name}_down.bias", (bottleneck,), "constant", 0.0, scope="layer"),
        TensorSpec(f"{name}_up.weight", ("hidden", bottleneck), "normal", 0.02, scope="layer"),
        TensorSpec(f"{name}_up.bias", ("hidden",), "constant", 0.0, scope="layer"),
    )


def cost(d: Dimensions) -> Cost:
    inner, hidden = bottleneck(d), d["hidden"]
    # D keeps h, f keeps D h, U keeps f(D h).
    return Cost(
        multiplications=2 * inner * hidden,
        saved_elements=hidden + 2 * inner,
        row_elements=2 * inner * hidden + inner + hidden,
    )


METHOD = Method(
    name="pfeiffer",
    title="Pfeiffer adapter",
    paper="arXiv:2005.00247",
    tensors=port("mlp"),
    costs={"layer": cost},
    ranks=(8, 16, 32, 64, 128),
    size="reduction",
    targets=(),
    learning_rate=1e-4,
    serves=("unmerged",),
)
