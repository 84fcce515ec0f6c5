"""Speed of ai.paretune::QuantLowRankMatMul against ONNX Runtime's own operators, as ratios.

    python tests/bench/bench_op.py [--size 4096] [--threads 2] [--repeats 15] [--json out.json]

Every contender runs in turn within each repeat, so a slow moment of the machine hits all of them;
each figure is the median over the repeats. "ours" is our op WITH a rank-16 tenant in its bank.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import torch
from onnx import numpy_helper

from compiler import nf4
from compiler.bank import AdapterBank, LoweredSite, Site
from compiler.ops.quant_low_rank_matmul import library_path, register_schema
from compiler.quantized import arrays

RANK = 16
ROWS = (1, 16, 64, 256)
BARS = {("fast", "nbits", 1): 2.5, ("fast", "nbits", 64): 2.5, ("fast", "bnb4_lora", 1): 0.2}
"""Ratio that a release must not exceed, by contender, peer and rows."""

OURS = """
<ir_version: 10, opset_import: ["": 21, "ai.paretune": 1]>
bench (float[batch, {k}] x, uint8[bytes] bank, int64[batch] slot) => (float[batch, {n}] y) {{
    y = ai.paretune.QuantLowRankMatMul
        <out_features = {n}, in_features = {k}, precision = "{precision}", site = 0>
        (x, {weights}, "", bank, slot)
}}
"""
CODES = "codes, absmax, codebook, nested_absmax, nested_codebook, offset"
PLAIN = 'weight, "", "", "", "", ""'

MATMUL = """
<ir_version: 10, opset_import: ["": 21]>
bench (float[batch, {k}] x) => (float[batch, {n}] y) {{ y = MatMul(x, weight) }}
"""

NBITS = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
bench (float[batch, {k}] x) => (float[batch, {n}] y) {{
    y = com.microsoft.MatMulNBits
        <K = {k}, N = {n}, bits = 4, block_size = 64, accuracy_level = 4> (x, codes, scales)
}}
"""

BNB4_LORA = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
bench (float[batch, {k}] x) => (float[batch, {n}] y) {{
    base = com.microsoft.MatMulBnb4
        <K = {k}, N = {n}, block_size = 64, quant_type = 1> (x, codes, absmax)
    latent = MatMul(x, a)
    pair = MatMul(latent, b)
    y = Add(base, pair)
}}
"""

Session = Callable[[np.ndarray], object]


def session(
    text: str, initializers: dict[str, np.ndarray], threads: int, feeds: dict[str, np.ndarray]
) -> Session:
    model = onnx.parser.parse_model(text)
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    model.graph.initializer.extend(tensors)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library_path()))
    # Idle threads that spin would take the processor from the contender that runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    loaded = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(x: np.ndarray) -> object:
        return loaded.run(None, {"x": x, **{k: v(len(x)) for k, v in feeds.items()}})

    return run


def contenders(n: int, k: int, threads: int) -> dict[str, Session]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((n, k), np.float32) / k**0.5
    a = rng.standard_normal((RANK, k), np.float32) / k**0.5
    b = rng.standard_normal((n, RANK), np.float32)
    bank = AdapterBank([Site("site", n, k)], 2)
    slot = bank.add("tenant", {"site": LoweredSite(a=a, b=b)})
    tenant = {
        "bank": lambda rows: bank.array,
        "slot": lambda rows: np.full(rows, slot, np.int64),
    }
    quantized = nf4.quantize(torch.from_numpy(weight))
    single = nf4.quantize(torch.from_numpy(weight), double=False)
    # MatMulNBits reads other codes out of these bytes: its speed does not depend on the values.
    nbits = {
        "codes": quantized.codes.reshape(n, k // 64, 32),
        "scales": np.ascontiguousarray(single.absmax.reshape(n, k // 64)) / 8,
    }
    lora = {"a": np.ascontiguousarray(a.T), "b": np.ascontiguousarray(b.T)}

    def ours(weights: str, precision: str, initializers: dict[str, np.ndarray]) -> Session:
        text = OURS.format(n=n, k=k, weights=weights, precision=precision)
        return session(text, initializers, threads, tenant)

    def peer(text: str, initializers: dict[str, np.ndarray]) -> Session:
        return session(text.format(n=n, k=k), initializers, threads, {})

    return {
        "fast": ours(CODES, "fast", arrays(quantized)),
        "exact": ours(CODES, "exact", arrays(quantized)),
        "exact_fp32": ours(PLAIN, "exact", {"weight": weight}),
        "exact_bf16": ours(PLAIN, "exact", {"weight": weight.astype(ml_dtypes.bfloat16)}),
        "nbits": peer(NBITS, nbits),
        "bnb4_lora": peer(BNB4_LORA, {"codes": single.codes, "absmax": single.absmax, **lora}),
        "matmul": peer(MATMUL, {"weight": np.ascontiguousarray(weight.T)}),
    }


def measure(
    sessions: dict[str, Session], rows: Sequence[int], k: int, repeats: int
) -> dict[int, dict[str, float]]:
    """Median seconds per run, by rows and contender."""
    rng = np.random.default_rng(1)
    result = {}
    for count in rows:
        x = rng.standard_normal((count, k), np.float32)
        taken: dict[str, list[float]] = {name: [] for name in sessions}
        for repeat in range(repeats + 1):
            for name, run in sessions.items():
                # The first run of a burst refills the caches and wakes the session's threads.
                run(x)
                start = time.perf_counter()
                run(x)
                if repeat > 0:
                    taken[name].append(time.perf_counter() - start)
        result[count] = {name: statistics.median(times) for name, times in taken.items()}
    return result


def machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(names.get("flags", "").split())
    best = "avx512" if {"avx512bw", "avx512_vnni"} <= flags else "portable"
    best = "avx2" if best == "portable" and {"avx2", "fma"} <= flags else best
    return {
        "processor": names.get("model name", platform.processor()),
        "cores": str(os.cpu_count()),
        "isa": os.environ.get("PARETUNE_ISA", best),
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }


def ratios(seconds: dict[int, dict[str, float]]) -> list[dict[str, object]]:
    pairs = [("fast", "nbits"), ("fast", "bnb4_lora"), ("exact", "matmul")]
    pairs += [("exact_fp32", "matmul"), ("exact_bf16", "matmul")]
    return [
        {
            "contender": ours,
            "peer": peer,
            "rows": rows,
            "milliseconds": times[ours] * 1e3,
            "peer_milliseconds": times[peer] * 1e3,
            "ratio": times[ours] / times[peer],
            "bar": BARS.get((ours, peer, rows)),
        }
        for ours, peer in pairs
        for rows, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="in and out features")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    register_schema()
    sessions = contenders(options.size, options.size, options.threads)
    seconds = measure(sessions, options.rows, options.size, options.repeats)
    rig = machine() | {"size": str(options.size), "threads": str(options.threads)}
    table = ratios(seconds)
    for name, value in rig.items():
        print(f"{name:12} {value}")
    print(f"\nours with a rank-{RANK} tenant; milliseconds are medians of {options.repeats}")
    for row in table:
        bar = "" if row["bar"] is None else f"  bar {row['bar']}"
        print(
            f"{row['contender']:10} / {row['peer']:10} rows {row['rows']:4}"
            f"  {row['milliseconds']:8.3f} / {row['peer_milliseconds']:8.3f} ms"
            f" = {row['ratio']:6.3f}{bar}"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": rig, "results": table}, indent=2) + "\n")
    missed = [row for row in table if row["bar"] is not None and row["ratio"] > row["bar"]]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
