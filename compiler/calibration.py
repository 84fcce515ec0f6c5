"""This machine, timed with what the compiler runs: torch's products and the fused op.

The planner times numpy on its own, and knows nothing of this package; so the same document is
written from here with what only torch and the op can tell: bf16 products, products with int8
activations, 4-bit weights read, and a tenant's share of them. On a CUDA device its rates are taken.
"""

from collections.abc import Callable

import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import torch
from onnx import numpy_helper

from compiler import nf4
from compiler.bank import AdapterBank, LoweredSite, Site
from compiler.ops.quant_low_rank_matmul import library_path, register_schema
from compiler.quantized import arrays
from planner import calibration
from planner.calibration import REPEATS, SIDE, STREAM_MIB, Calibration, Timing, timed
from planner.spec import Hardware

RANK = 16
ROWS = 64
"""Tokens of a short prompt: enough for products to be bound by arithmetic."""

OP = """
<ir_version: 10, opset_import: ["": 21, "ai.paretune": 1]>
timing (float[batch, {side}] x, uint8[bytes] bank, int64[batch] slot) => (float[batch, {side}] y) {{
    y = ai.paretune.QuantLowRankMatMul
        <out_features = {side}, in_features = {side}, precision = "{precision}", site = 0>
        (x, codes, absmax, codebook, nested_absmax, nested_codebook, offset, "", bank, slot)
}}
"""


def measure(*, quick: bool = False) -> Calibration:
    """Time this machine; a CUDA device where there is one, else the processor."""
    register_schema()
    found = calibration.measure(quick=quick)
    fused = fused_op(quick=quick)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    products = {name: product(name, device, quick=quick) for name in ("float32", "bfloat16")}
    single, half = (timing.rate / 1e12 for timing in products.values())
    rates = {
        "fp32_tflops": max(single, found.hardware.fp32_tflops or 0.0),
        # bf16 products that are slower than fp32's are emulated: nobody is served by them.
        "bf16_tflops": half if half > single else None,
    }
    timings = [*found.timings, *products.values(), *fused]
    if device.type == "cuda":
        stream = cuda_stream(device, quick=quick)
        timings.append(stream)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        hardware = Hardware(
            kind="gpu",
            memory_gib=memory,
            bandwidth_gb_per_second=stream.rate / 1e9,
            measured=True,
            **rates | {"fp32_tflops": single},
        )
    else:
        fast = fused[0].rate / 1e12
        hardware = found.hardware.model_copy(update={**rates, "int8_tops": fast})
    return found.model_copy(update={"hardware": hardware, "timings": tuple(timings)})


def product(dtype: str, device: torch.device, *, quick: bool) -> Timing:
    side = SIDE[quick] * (4 if device.type == "cuda" else 1)
    left, right = (torch.randn(side, side).to(device, getattr(torch, dtype)) for _ in range(2))
    name = f"{dtype} product of {side} x {side} matrices, torch on {device.type}"
    return timed(name, finished(left.matmul, right), 2.0 * side**3, "flops", REPEATS[quick])


def cuda_stream(device: torch.device, *, quick: bool) -> Timing:
    weights = torch.ones(4 * STREAM_MIB[quick] * 2**18, device=device)
    name = f"{weights.nbytes >> 20} MiB read by a sum, torch on cuda"
    return timed(name, finished(weights.sum), float(weights.nbytes), "bytes", REPEATS[quick])


def finished(run: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> Callable[[], object]:
    """The same, until its result is there."""

    def until_done() -> None:
        run(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return until_done


def fused_op(*, quick: bool) -> tuple[Timing, ...]:
    """Int8 rows by 4-bit weights; one exact row, for the base and for a tenant of rank 16."""
    side = SIDE[quick]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((side, side), np.float32) / side**0.5
    bank = AdapterBank([Site("site", side, side)], 2)
    pair = LoweredSite(
        a=rng.standard_normal((RANK, side), np.float32),
        b=rng.standard_normal((side, RANK), np.float32),
    )
    tenant = bank.add("tenant", {"site": pair})
    stored = arrays(nf4.quantize(torch.from_numpy(weight)))
    fast, exact = (_session(side, precision, stored) for precision in ("fast", "exact"))
    codes = float(sum(array.nbytes for array in stored.values()))

    def run(session: onnxruntime.InferenceSession, rows: int, slot: int) -> Callable[[], object]:
        x = rng.standard_normal((rows, side), np.float32)
        feeds = {"x": x, "bank": bank.array, "slot": np.full(rows, slot, np.int64)}
        return lambda: session.run(None, feeds)

    place = f"{side} x {side} nf4 weights, fused op"
    repeats = 3 * REPEATS[quick]
    operations = 2.0 * ROWS * side**2
    return (
        timed(f"{ROWS} int8 rows by {place}", run(fast, ROWS, 0), operations, "flops", repeats),
        timed(f"{ROWS} exact rows by {place}", run(exact, ROWS, 0), operations, "flops", repeats),
        timed(f"1 exact row by {place}", run(exact, 1, 0), codes, "bytes", repeats),
        timed(
            f"1 row of a rank-{RANK} tenant by {place}",
            run(exact, 1, tenant),
            codes,
            "bytes",
            repeats,
        ),
    )


def _session(
    side: int, precision: str, stored: dict[str, np.ndarray]
) -> onnxruntime.InferenceSession:
    model = onnx.parser.parse_model(OP.format(side=side, precision=precision))
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    model.graph.initializer.extend(tensors)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = calibration.threads()
    options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
