"""BitFit (Ben Zaken et al., 2021, arXiv 2106.10199): only biases are trained, y += c.

A linear without a bias gets one, so that models without biases can be adapted too.
"""

from collections.abc import Mapping

from planner.method import Method, Site, TensorSpec
from planner.update import OutputShift, Tensor, Update


def update(tensors: Mapping[str, Tensor], site: Site) -> Update:
    return (OutputShift(tensors["bias_shift"]),)


METHOD = Method(
    name="bitfit",
    title="BitFit",
    paper="arXiv:2106.10199",
    builds=True,
    tensors=(TensorSpec("bias_shift", ("out",), "constant", 0.0),),
    update=update,
    # The paper's best rates were 1e-4 to 1e-3, five to ten times those of full fine-tuning.
    learning_rate=1e-3,
)
