"""VeRA (Kopiczko et al., 2023, arXiv 2310.11454): y += b * (B (d * (A x))), A and B shared.

A and B are frozen, shared by all targets, sliced to each target's width and regenerated from the
seed; only the vectors b and d are trained and stored.
"""

from collections.abc import Mapping

from planner.method import SAME_RANK, Method, Site, TensorSpec
from planner.update import LowRank, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    return (
        LowRank(
            tensors["vera_A"][:, : site.target.in_features],
            tensors["vera_B"][: site.target.out_features],
            latent_scale=tensors["vera_lambda_d"],
            output_scale=tensors["vera_lambda_b"],
        ),
    )


METHOD = Method(
    name="vera",
    title="VeRA",
    paper="arXiv:2310.11454",
    builds=True,
    tensors=(
        TensorSpec(
            "vera_A",
            ("rank", "max_in"),
            "vera_projection",
            trainable=False,
            scope="model",
            seeded=True,
            peft_key="vera_A",
        ),
        TensorSpec(
            "vera_B",
            ("max_out", "rank"),
            "vera_projection",
            trainable=False,
            scope="model",
            seeded=True,
            peft_key="vera_B",
        ),
        TensorSpec("vera_lambda_d", ("rank",), "constant", 0.1, peft_key="vera_lambda_d"),
        TensorSpec("vera_lambda_b", ("out",), "constant", 0.0, peft_key="vera_lambda_b"),
    ),
    update=update,
    ranks=(64, 128, 256),
    drops_input=True,
    learning_rate=3e-3,
    converts_to=SAME_RANK,
    peft_config={"peft_type": "VERA"},
)
