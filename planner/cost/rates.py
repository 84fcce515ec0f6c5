"""The rates that a device reaches, and how each is known: a share of a peak, or a measurement.

A peak is what a data sheet promises. What a model reaches is a share of it, assumed or measured
somewhere else; only a device that was measured itself needs none.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from planner.plan import Evidence
from planner.spec import Hardware


class Share(NamedTuple):
    """Of a peak, and how that is known."""

    value: float
    evidence: Evidence
    source: str


COMPUTE = {
    "gpu": Share(
        0.65,
        "assumed",
        "large products reach 0.80 to 0.86 (A100 267 of 312, H100 792 of 989: "
        "stas00/ml-engineering), those of a step less",
    ),
    "cpu": Share(
        0.60,
        "measured",
        "two AVX2 cores training SmolLM2-135M in fp32, 4 x 256 tokens in 5.4 s",
    ),
}
BANDWIDTH = {
    "gpu": Share(0.80, "assumed", "streams reach 0.8 to 0.9 of a data sheet's bandwidth"),
    "cpu": Share(0.75, "assumed", "streams reach 0.7 to 0.8 of the memory's bandwidth"),
}
MEASURED = Share(1.0, "measured", "products and streams timed on the device itself")
FAST_SPEEDUP = 2.0
"""Products with int8 activations against fp32, where the device's int8 rate is unknown; assumed."""
LINK_BYTES_PER_SECOND = {"gpu": 25e9, "cpu": 2e9}
"""At which an adapter's row is fetched: over PCIe 4.0 x16, from a file; assumed."""


class Rates(NamedTuple):
    """What is reached: operations per second by arithmetic, and bytes per second."""

    compute: float
    adapter: float
    fast: float
    bandwidth: float
    link: float


def compute_share(device: Hardware) -> Share:
    return MEASURED if device.measured else COMPUTE[device.kind]


def bandwidth_share(device: Hardware) -> Share:
    return MEASURED if device.measured else BANDWIDTH[device.kind]


@lru_cache(maxsize=256)
def reached(device: Hardware, compute: str) -> Rates | None:
    """None where the peak of that arithmetic or the bandwidth is unknown.

    Adapters are fp32. Where that peak is unknown they are few enough to take the other.
    """
    peaks = {"bf16": device.bf16_tflops, "fp16": device.fp16_tflops, "fp32": device.fp32_tflops}
    peak = peaks[compute]
    if peak is None or device.bandwidth_gb_per_second is None:
        return None
    share = compute_share(device).value * 1e12
    single = device.fp32_tflops or peak
    return Rates(
        compute=peak * share,
        adapter=single * share,
        fast=(device.int8_tops or FAST_SPEEDUP * single) * share,
        bandwidth=device.bandwidth_gb_per_second * 1e9 * bandwidth_share(device).value,
        link=LINK_BYTES_PER_SECOND[device.kind],
    )


def evidence(device: Hardware, constants: Sequence[str] = ()) -> Evidence:
    """Of a time: measured only where no share of a peak is assumed, and no constant of another
    device counts.
    """
    shares = (compute_share(device), bandwidth_share(device))
    known = all(share.evidence == "measured" for share in shares)
    return "measured" if known and not constants else "assumed"


def source(device: Hardware, constants: Sequence[str] = ()) -> str:
    """Which shares and constants a time rests on, and how each is known."""
    assumed = "".join(f", {constant} (assumed)" for constant in constants)
    if device.measured:
        return f"roofline with {MEASURED.source}{assumed}"
    shares = {"compute": compute_share(device), "bandwidth": bandwidth_share(device)}
    said = ", ".join(f"{s.value:g} of peak {name} ({s.evidence})" for name, s in shares.items())
    return f"roofline at {said}{assumed}"
