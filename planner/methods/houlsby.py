"""Houlsby adapters (Houlsby et al., 2019, arXiv 1902.00751): h += U f(D h), twice in a block.

After the attention and after the MLP; f is swish, as in AdapterHub.
"""

from dataclasses import replace

from planner.method import Cost, Dimensions
from planner.methods.pfeiffer import METHOD as PFEIFFER
from planner.methods.pfeiffer import cost, port


def both(d: Dimensions) -> Cost:
    one = cost(d)
    return Cost(
        multiplications=2 * one.multiplications,
        saved_elements=2 * one.saved_elements,
        row_elements=2 * (one.row_elements or 0),
    )


METHOD = replace(
    PFEIFFER,
    name="houlsby",
    title="Houlsby adapter",
    paper="arXiv:1902.00751",
    tensors=(*port("attention"), *port("mlp")),
    costs={"layer": both},
)
