"""ai.paretune::QuantLowRankMatMul in a real ONNX Runtime session against its torch reference.

Every case runs on each instruction set this processor has.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from compiler import nf4
from compiler.bank import AdapterBank, LoweredSite, Site
from compiler.ops.quant_low_rank_matmul import (
    integer_codebook,
    library_path,
    reference,
    register_schema,
    round_activations,
)
from compiler.quantized import QuantizedWeight, arrays, dequantize
from planner.errors import IncompatibleError

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
ISAS = {"portable": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512_vnni", "avx512bw"}}
FORMATS = ("fp32", "bf16", "nf4", "nf4_single", "int4")
QUANTIZED = FORMATS[2:]
CASES = [(kind, "exact") for kind in FORMATS] + [(kind, "fast") for kind in QUANTIZED]

Weight = np.ndarray | QuantizedWeight


@dataclass(frozen=True)
class Shape:
    out_features: int
    in_features: int
    batch: int
    positions: int


SHAPES = (
    Shape(64, 128, 3, 2),  # everything aligned
    Shape(33, 192, 4, 7),  # one column beyond a panel, rows beyond a tile
    Shape(40, 100, 3, 3),  # blocks straddle rows
    Shape(7, 33, 2, 2),  # odd number of weights: rows begin in the middle of a byte
    Shape(1, 64, 1, 1),
    Shape(1, 1, 2, 1),
    Shape(130, 576, 2, 5),  # more than one slice of inputs
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices are tiny: the reference's own threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if not ISAS[name] <= CPU_FLAGS:
        pytest.skip(f"this processor lacks {', '.join(sorted(ISAS[name] - CPU_FLAGS))}")
    monkeypatch.setenv("PARETUNE_ISA", name)
    return name


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def make_weight(kind: str, dense: np.ndarray) -> Weight:
    if kind == "fp32":
        return dense
    if kind == "bf16":
        return dense.astype(ml_dtypes.bfloat16)
    quantized = nf4.quantize(torch.from_numpy(dense), double=kind != "nf4_single")
    if kind == "int4":
        levels = np.arange(-8, 8, dtype=np.float32) / 8
        return replace(quantized, codebook=levels)
    return quantized


def dense_weight(weight: Weight) -> np.ndarray:
    if isinstance(weight, QuantizedWeight):
        return dequantize(weight)
    return weight.astype(np.float32)


def make_updates(rng: np.random.Generator, n: int, k: int) -> dict[str, LoweredSite]:
    """Every part alone or combined; ranks 0, 1, an odd one, and more than one group of four."""
    return {
        "lora": LoweredSite(a=normal(rng, 5, k), b=normal(rng, n, 5)),
        "rank_one": LoweredSite(a=normal(rng, 1, k), b=normal(rng, n, 1)),
        "dora": LoweredSite(
            a=normal(rng, 16, k), b=normal(rng, n, 16), output_scale=normal(rng, n)
        ),
        "vera": LoweredSite(
            a=normal(rng, 9, k),
            b=normal(rng, n, 9),
            latent_scale=normal(rng, 9),
            pair_scale=normal(rng, n),
        ),
        "ia3": LoweredSite(input_scale=normal(rng, k)),
        "bitfit": LoweredSite(output_shift=normal(rng, n)),
    }


def model(weight: Weight, precision: str, *, bias: bool, bank: bool, constant: bool) -> bytes:
    n, k = weight.shape
    parts = arrays(weight) if isinstance(weight, QuantizedWeight) else {"weight": weight}
    if "codes" in parts:
        order = ("codes", "absmax", "codebook", "nested_absmax", "nested_codebook", "offset")
        names = [name if name in parts else '""' for name in order]
    else:
        names = ["weight", *['""'] * 5]
    inputs = ["x", *names, "bias" if bias else '""', *(("bank", "slot") if bank else ())]
    while inputs[-1] == '""':
        inputs.pop()
    declared = ["float[N, M, K] x"] + (["uint8[bytes] bank", "int64[N] slot"] if bank else [])
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21, "ai.paretune": 1]>
        test ({", ".join(declared)}) => (float y) {{
            y = ai.paretune.QuantLowRankMatMul
                <out_features = {n}, in_features = {k}, block_size = 64,
                 precision = "{precision}", site = {1 if bank else -1}> ({", ".join(inputs)})
        }}"""
    )
    for name, array in parts.items():
        if constant:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        else:
            element = numpy_helper.from_array(array).data_type
            shape = ", ".join(map(str, array.shape))
            declaration = f"{ELEMENT[element]}[{shape}] {name}"
            proto.graph.input.append(
                onnx.parser.parse_graph(f"g ({declaration}) => () {{}}").input[0]
            )
    if bias:
        proto.graph.initializer.append(numpy_helper.from_array(bias_values(n), "bias"))
    register_schema()
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


ELEMENT = {1: "float", 2: "uint8", 16: "bfloat16"}


def bias_values(n: int) -> np.ndarray:
    return np.linspace(-1, 1, n, dtype=np.float32)


def open_session(
    weight: Weight,
    precision: str = "exact",
    *,
    bias: bool = False,
    bank: bool = True,
    constant: bool = True,
    threads: int = 2,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(str(library_path()))
    proto = model(weight, precision, bias=bias, bank=bank, constant=constant)
    return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def make_bank(n: int, k: int, updates: dict[str, LoweredSite]) -> AdapterBank:
    """Two sites, so that ours (1) is not the first entry of a directory."""
    bank = AdapterBank([Site("other", 3, 5), Site("site", n, k)], len(updates) + 2)
    for name, update in updates.items():
        bank.add(name, {"site": update})
    return bank


def run(
    session: onnxruntime.InferenceSession, x: np.ndarray, bank: np.ndarray, slots: Sequence[int]
) -> np.ndarray:
    feeds = {"x": x, "bank": bank, "slot": np.asarray(slots, np.int64)}
    return session.run(None, feeds)[0]


def absolute(update: LoweredSite | None) -> LoweredSite | None:
    if update is None:
        return None
    parts = {name: value for name, value in vars(update).items() if isinstance(value, np.ndarray)}
    return replace(update, **{name: np.abs(value) for name, value in parts.items()})


def rounding_bound(
    x: np.ndarray, weight: Weight, bias: np.ndarray | None, updates: Sequence[LoweredSite | None]
) -> np.ndarray:
    """What float32 may lose: one unit of 2^-24 per operation, each on at most the sum of |terms|.

    K + rank multiply-adds and a dozen element-wise steps lie between an input and its output.
    """
    magnitude = reference(
        torch.from_numpy(np.abs(x)),
        torch.from_numpy(np.abs(dense_weight(weight))),
        None if bias is None else torch.from_numpy(np.abs(bias)),
        [absolute(update) for update in updates],
        dtype=torch.float64,
    ).numpy()
    rank = max((update.rank for update in updates if update is not None), default=0)
    return (x.shape[-1] + rank + 12) * 2.0**-24 * magnitude


def assert_close(
    y: np.ndarray,
    x: np.ndarray,
    weight: Weight,
    precision: str,
    bias: np.ndarray | None = None,
    updates: Sequence[LoweredSite | None] = (),
) -> None:
    known = (
        weight
        if isinstance(weight, QuantizedWeight)
        else torch.from_numpy(weight.astype(np.float32))
    )
    expected = reference(
        torch.from_numpy(x),
        known,
        None if bias is None else torch.from_numpy(bias),
        updates,
        precision=precision,
        dtype=torch.float64,
    ).numpy()
    assert y.shape == expected.shape
    bound = rounding_bound(x, weight, bias, updates)
    # Fast rounds |x| and |w| up by at most 1 in 127 each before it multiplies.
    assert np.all(np.abs(y - expected) <= bound * (1.02 if precision == "fast" else 1.0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_agrees_with_reference_for_mixed_slots(
    isa: str, kind: str, precision: str, shape: Shape
) -> None:
    rng = np.random.default_rng(1)
    n, k = shape.out_features, shape.in_features
    weight = make_weight(kind, normal(rng, n, k))
    updates = make_updates(rng, n, k)
    bank = make_bank(n, k, updates)
    session = open_session(weight, precision, bias=True)
    tenants: list[str | None] = [None, *updates]
    for start in range(0, len(tenants), shape.batch):
        chosen = [tenants[(start + i) % len(tenants)] for i in range(shape.batch)]
        x = normal(rng, shape.batch, shape.positions, k)
        y = run(session, x, bank.array, [bank.slot(t) if t else 0 for t in chosen])
        rows = [updates[t] if t else None for t in chosen]
        assert_close(y, x, weight, precision, bias_values(n), rows)


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(
    isa: str, kind: str, precision: str
) -> None:
    rng = np.random.default_rng(2)
    n, k = 203, 320
    weight = make_weight(kind, normal(rng, n, k))
    bank = make_bank(n, k, make_updates(rng, n, k))
    slots = rng.integers(0, 7, 29)
    x = normal(rng, len(slots), 3, k)
    session = open_session(weight, precision)
    y = run(session, x, bank.array, slots)
    alone = [run(session, x[i : i + 1], bank.array, slots[i : i + 1]) for i in range(len(slots))]
    assert np.array_equal(np.concatenate(alone), y)
    first_position = run(session, np.ascontiguousarray(x[:, :1]), bank.array, slots)
    assert np.array_equal(first_position, y[:, :1])
    single = [
        run(session, np.ascontiguousarray(x[i : i + 1, :1]), bank.array, slots[i : i + 1])
        for i in range(len(slots))
    ]
    assert np.array_equal(np.concatenate(single), first_position)
    order = rng.permutation(len(slots))
    assert np.array_equal(run(session, x[order], bank.array, slots[order]), y[order])
    for threads in (1, 5):
        other = open_session(weight, precision, threads=threads)
        assert np.array_equal(run(other, x, bank.array, slots), y)


@pytest.mark.parametrize(("kind", "precision"), [("fp32", "exact"), ("nf4", "fast")])
def test_tall_batches_agree_with_reference(isa: str, kind: str, precision: str) -> None:
    """More rows than stay in cache: strips are walked slice by slice instead of panel by panel."""
    rng = np.random.default_rng(3)
    n, k = 96, 1088
    x = normal(rng, 1, 530, k)
    weight = make_weight(kind, normal(rng, n, k))
    y = open_session(weight, precision, bank=False).run(None, {"x": x})[0]
    assert_close(y, x, weight, precision)


@pytest.mark.parametrize("shape", [(0, 3, 128), (2, 0, 128)])
def test_empty_input_gives_empty_output(isa: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    weight = make_weight("nf4", normal(rng, 24, 128))
    bank = make_bank(24, 128, make_updates(rng, 24, 128))
    y = run(open_session(weight, "fast"), np.zeros(shape, np.float32), bank.array, [0] * shape[0])
    assert y.shape == (*shape[:-1], 24)


@pytest.mark.parametrize("shape", [(128,), (3, 128), (2, 3, 4, 128)])
def test_x_of_any_rank_without_a_bank(isa: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    weight = make_weight("nf4", normal(rng, 24, 128))
    proto = onnx.load_from_string(model(weight, "exact", bias=False, bank=False, constant=True))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = normal(rng, *shape)
    assert_close(session.run(None, {"x": x})[0], x, weight, "exact")


@pytest.mark.parametrize(
    ("kind", "precision"), [("fp32", "exact"), ("nf4", "exact"), ("nf4", "fast")]
)
def test_weight_may_be_computed_by_the_graph(isa: str, kind: str, precision: str) -> None:
    rng = np.random.default_rng(6)
    weight = make_weight(kind, normal(rng, 40, 128))
    x = normal(rng, 2, 3, 128)
    given = open_session(weight, precision, bank=False, constant=False)
    parts = arrays(weight) if isinstance(weight, QuantizedWeight) else {"weight": weight}
    constant = open_session(weight, precision, bank=False)
    expected = constant.run(None, {"x": x})[0]
    assert np.array_equal(given.run(None, {"x": x, **parts})[0], expected)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_in_its_row(isa: str, precision: str, bad: float) -> None:
    rng = np.random.default_rng(7)
    weight = make_weight("nf4", normal(rng, 40, 128))
    session = open_session(weight, precision, bank=False)
    x = normal(rng, 3, 1, 128)
    clean = session.run(None, {"x": x})[0]
    x[1, 0, 70] = bad
    y = session.run(None, {"x": x})[0]
    assert not np.isfinite(y[1]).any()
    assert np.array_equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(("kind", "precision"), [("fp32", "exact"), ("nf4", "fast")])
def test_writes_nothing_beside_its_output(isa: str, kind: str, precision: str) -> None:
    rng = np.random.default_rng(8)
    n, k, rows, guard = 37, 192, 5, 64
    session = open_session(make_weight(kind, normal(rng, n, k)), precision, bank=False)
    memory = np.full(guard + rows * n + guard, 12345.0, np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", normal(rng, 1, rows, k))
    pointer = memory[guard:].ctypes.data
    binding.bind_output("y", "cpu", 0, np.float32, (1, rows, n), pointer)
    session.run_with_iobinding(binding)
    assert np.all(memory[:guard] == 12345.0)
    assert np.all(memory[-guard:] == 12345.0)
    assert not np.any(memory[guard:-guard] == 12345.0)


def corrupt(bank: np.ndarray, offset: int, value: int) -> np.ndarray:
    copy = AdapterBank([Site("one", 1, 1)], 1, capacity_bytes=bank.size).array[: bank.size]
    copy[:] = bank
    copy[offset : offset + 8].view(np.int64)[0] = value
    return copy


def directory(bank: AdapterBank, name: str) -> int:
    """Byte offset of the tenant's entry for site 1."""
    table = int(bank.array[40:48].view(np.int64)[0])
    start = table + 8 * bank.slot(name)
    return int(bank.array[start : start + 8].view(np.int64)[0]) + 96


RANK_FIELD, A_FIELD, STRIDE_FIELD, SCALE_FIELD = 0, 8, 16, 40


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (A_FIELD, 1 << 62, "lies outside the bank"),
        (A_FIELD, -64, "lies outside the bank"),
        (A_FIELD, 4, "lies outside the bank"),
        (A_FIELD, 0, "lacks a factor"),
        (STRIDE_FIELD, 1 << 62, "lies outside the bank"),
        (STRIDE_FIELD, 3, "stride is too short"),
        (SCALE_FIELD, (1 << 63) - 64, "lies outside the bank"),
        (RANK_FIELD, 1 << 61, "lies outside the bank"),
        (RANK_FIELD, -1, "negative rank"),
    ],
)
def test_a_corrupt_directory_is_an_error(field: int, value: int, message: str) -> None:
    rng = np.random.default_rng(9)
    bank = make_bank(24, 128, make_updates(rng, 24, 128))
    session = open_session(normal(rng, 24, 128))
    broken = corrupt(bank.array, directory(bank, "dora") + field, value)
    with pytest.raises(state.InvalidArgument, match=message):
        run(session, normal(rng, 1, 1, 128), broken, [bank.slot("dora")])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0, "no PTRNBANK header"),
        (8, 2, "bank version is not 1: 2"),
        (16, 1 << 60, "row table lies outside"),
        (24, 1, "site 1 is out of range: the bank has 1 sites"),
        (24, 1 << 60, "directory of slot 1 lies outside"),
        (32, 1 << 40, "bank is truncated: header says"),
        (32, -1, "bank is truncated: header says"),
        (40, 1 << 62, "row table lies outside"),
    ],
)
def test_a_corrupt_header_is_an_error(offset: int, value: int, message: str) -> None:
    rng = np.random.default_rng(10)
    bank = make_bank(24, 128, make_updates(rng, 24, 128))
    session = open_session(normal(rng, 24, 128))
    with pytest.raises(state.InvalidArgument, match=message):
        run(session, normal(rng, 1, 1, 128), corrupt(bank.array, offset, value), [1])


def test_unusable_slots_and_banks_are_errors() -> None:
    rng = np.random.default_rng(11)
    bank = make_bank(24, 128, {})
    session = open_session(normal(rng, 24, 128))
    x = normal(rng, 2, 1, 128)
    failure = state.InvalidArgument
    with pytest.raises(failure, match="slot 1 is empty"):
        run(session, x, bank.array, [0, 1])
    with pytest.raises(failure, match="slot 2 is out of range: the bank has 2 slots"):
        run(session, x, bank.array, [0, 2])
    with pytest.raises(failure, match="slot -1 is out of range"):
        run(session, x, bank.array, [-1, 0])
    with pytest.raises(failure, match="slot has 3 elements"):
        run(session, x, bank.array, [0, 0, 0])
    with pytest.raises(failure, match="bank is truncated: shorter than its header"):
        run(session, x, bank.array[:40], [0, 0])
    with pytest.raises(failure, match="bank is truncated: header says"):
        run(session, x, bank.array[:-64], [0, 0])
    with pytest.raises(failure, match="bank is not aligned"):
        run(session, x, np.concatenate([bank.array[:1], bank.array])[1:], [0, 0])


def test_impossible_nodes_are_errors_when_the_session_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(12)
    dense = normal(rng, 24, 128)
    # ONNX Runtime keeps our sentence but not the status code while it builds a session.
    failure = state.RuntimeException
    with pytest.raises(failure, match="precision fast needs a 4-bit weight"):
        open_session(dense, "fast")
    with pytest.raises(failure, match="precision is neither exact nor fast: quick"):
        open_session(dense, "quick")
    quantized = nf4.quantize(torch.from_numpy(dense))
    with pytest.raises(failure, match="weight has 1535 elements"):
        open_session(replace(quantized, codes=quantized.codes[:-1]))
    with pytest.raises(failure, match="absmax has 47 elements"):
        open_session(replace(quantized, absmax=quantized.absmax[:-1]))
    # A part that is no initializer may still be computed: what is missing shows at the first run.
    partial = open_session(replace(quantized, offset=None), bank=False)
    with pytest.raises(state.InvalidArgument, match="nested_offset go together"):
        partial.run(None, {"x": normal(rng, 1, 1, 128)})
    monkeypatch.setenv("PARETUNE_ISA", "avx1024")
    with pytest.raises(failure, match=r"PARETUNE_ISA is not usable.*avx1024.*portable"):
        open_session(dense)


def test_the_library_exports_one_symbol() -> None:
    """Another C++ library in the process must not bind to our symbols."""
    library = ctypes.CDLL(str(library_path()))
    assert hasattr(library, "RegisterCustomOps")
    assert not hasattr(library, "_ZN8paretune14select_variantEv")


def test_activations_are_rounded_to_levels_of_the_second_largest() -> None:
    """By hand: second largest 127, so the scale is 1; the outlier may use 128 times the range."""
    x = torch.zeros(64)
    x[:5] = torch.tensor([127.0, -3.4, 0.5, 1.5, 9000.6])
    rounded = round_activations(x)
    assert rounded[:5].tolist() == [127.0, -3.0, 0.0, 2.0, 9001.0]
    x[4] = 127.0 * 256
    assert round_activations(x)[:4].tolist() == [128.0, -4.0, 0.0, 2.0]


def test_uniform_codebooks_are_exact_integers() -> None:
    levels = np.arange(-8, 8, dtype=np.float32) / 8
    assert np.array_equal(integer_codebook(levels).values(), levels)


def test_nf4_codebook_rounding_is_small() -> None:
    """0.5 % of the levels' root mean square; int8 of 127 steps per side would be 0.6 %."""
    levels = np.asarray(nf4.NF4_LEVELS, np.float32)
    error = integer_codebook(levels).values() - levels
    assert np.sqrt(np.mean(error**2) / np.mean(levels**2)) < 0.005


def test_fast_loses_little_against_exact() -> None:
    """Gaussian activations lose 0.5 % to int8, NF4 0.4 % to its table; together under 1 %."""
    rng = np.random.default_rng(13)
    weight = nf4.quantize(torch.from_numpy(normal(rng, 256, 1024)))
    x = torch.from_numpy(normal(rng, 64, 1024))
    exact, fast = (reference(x, weight, precision=p) for p in ("exact", "fast"))
    assert (fast - exact).norm() < 0.01 * exact.norm()


def test_reference_refuses_what_the_op_refuses() -> None:
    with pytest.raises(IncompatibleError, match="precision fast needs a 4-bit weight"):
        reference(torch.ones(1, 2), torch.ones(3, 2), precision="fast")
    with pytest.raises(IncompatibleError, match="2 batch rows have 1 updates"):
        reference(torch.ones(2, 2), torch.ones(3, 2), None, [None])


def test_a_missing_variable_means_the_best_instruction_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PARETUNE_ISA", raising=False)
    assert "PARETUNE_ISA" not in os.environ
    rng = np.random.default_rng(14)
    dense, x = normal(rng, 24, 128), normal(rng, 1, 2, 128)
    assert_close(open_session(dense, bank=False).run(None, {"x": x})[0], x, dense, "exact")
