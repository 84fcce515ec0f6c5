"""QPiSSA (Meng et al., 2024, arXiv 2404.02948): PiSSA whose residual is quantised.

The residual W - B A has a smaller range than W, so its NF4 error is smaller. It is another base
than the quantised W, so the difference to that one is not a pair.
"""

from dataclasses import replace

from planner.method import Conversion
from planner.methods.pissa import METHOD as PISSA

METHOD = replace(
    PISSA,
    name="qpissa",
    title="QPiSSA",
    builds=False,
    formats=("nf4",),
    optimizer="paged_adamw8bit",
    serves=("merged",),
    converts_to=Conversion(lambda d: 2 * d["rank"], exact=False),
)
