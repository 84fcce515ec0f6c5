"""This machine, timed: the device that the hardware name "local" stands for.

Rates are the best of what products and streams reach here, as other programs only slow them; so no
share of a peak is assumed of them. The planner times what numpy does; the compiler adds what torch
and its fused op do, and writes the same document.
"""

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click

from planner.catalog import read_object
from planner.documents import dump, validated, write
from planner.errors import UsageError
from planner.home import home
from planner.options import print_json
from planner.section import Section
from planner.spec import Hardware

LOCAL = "local"
FILE = "calibration.json"
CPU_INFO = Path("/proc/cpuinfo")
REPEATS = {False: 9, True: 3}
SIDE = {False: 2048, True: 1024}
"""Of the square matrices multiplied; a quick run takes the second of each."""
STREAM_MIB = {False: 256, True: 64}
"""Read by a product of a matrix and a vector, as a decoding step reads its weights."""


class Machine(Section):
    """What the rates hold for; a document of another machine is refused."""

    processor: str
    threads: int


class Timing(Section):
    """One measurement: so many operations or bytes in so many seconds, the least of the repeats."""

    name: str
    amount: float
    unit: Literal["flops", "bytes"]
    seconds: float
    repeats: int

    @property
    def rate(self) -> float:
        """Per second."""
        return self.amount / self.seconds


class Calibration(Section):
    """`hardware` holds the rates that the planner uses; `timings` what they come from."""

    schema_version: Literal[1] = 1
    measured_at: str
    machine: Machine
    hardware: Hardware
    timings: tuple[Timing, ...]


def this_machine() -> Machine:
    name = platform.processor()
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text("utf-8").splitlines()
        name = next((v.split(":", 1)[1] for v in lines if v.startswith("model name")), name)
    return Machine(processor=name.strip() or platform.machine(), threads=threads())


def threads() -> int:
    """That products run on: what the environment allows, else all."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(int(named), available or 1) if named.isdigit() and int(named) else available or 1


def timed(
    name: str,
    run: Callable[[], object],
    amount: float,
    unit: Literal["flops", "bytes"],
    repeats: int,
) -> Timing:
    """The fastest of `repeats` runs after one that warms up."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return Timing(name=name, amount=amount, unit=unit, seconds=min(taken), repeats=repeats)


def measure(*, quick: bool = False) -> Calibration:
    """Time this machine; seconds, or a second when `quick`."""
    product, stream = _product(quick=quick), _stream(quick=quick)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Calibration(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        hardware=Hardware(
            kind="cpu",
            memory_gib=memory / 2**30,
            bandwidth_gb_per_second=stream.rate / 1e9,
            fp32_tflops=product.rate / 1e12,
            measured=True,
        ),
        timings=(product, stream),
    )


def _product(*, quick: bool) -> Timing:
    import numpy as np  # noqa: PLC0415, not needed to plan

    side = SIDE[quick]
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    out = np.empty((side, side), np.float32)
    name = f"fp32 product of {side} x {side} matrices, numpy"

    def run() -> None:
        np.matmul(left, right, out=out)

    return timed(name, run, 2.0 * side**3, "flops", REPEATS[quick])


def _stream(*, quick: bool) -> Timing:
    import numpy as np  # noqa: PLC0415, not needed to plan

    columns = 4096
    matrix = np.ones((STREAM_MIB[quick] * 2**20 // (4 * columns), columns), np.float32)
    vector = np.ones(columns, np.float32)
    out = np.empty(len(matrix), np.float32)
    name = f"{STREAM_MIB[quick]} MiB of fp32 weights read by one token, numpy"

    def run() -> None:
        np.matmul(matrix, vector, out=out)

    return timed(name, run, float(matrix.nbytes), "bytes", REPEATS[quick])


def save(calibration: Calibration) -> Path:
    """Into the folder of this machine, written aside and renamed."""
    path = home() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, dump(calibration))
    return path


def stored() -> Calibration | None:
    """What was saved last, or None; raises UsageError for a file that is damaged."""
    path = home() / FILE
    if not path.is_file():
        return None
    return validated(Calibration, read_object(path), path.name)


def local() -> Hardware:
    """This machine; raises UsageError when it was never timed, or another one was."""
    found = stored()
    if found is None:
        raise UsageError(
            f"hardware '{LOCAL}' has not been measured on this machine",
            hint="planner calibrate",
        )
    if found.machine != (machine := this_machine()):
        raise UsageError(
            f"hardware '{LOCAL}' was measured on '{found.machine.processor}' with "
            f"{found.machine.threads} threads, and this is '{machine.processor}' with "
            f"{machine.threads}",
            hint="planner calibrate",
        )
    return found.hardware


def report(calibration: Calibration, path: Path, *, as_json: bool) -> None:
    """What was timed and where it is kept, on standard output."""
    if as_json:
        print_json(path=str(path), calibration=calibration.model_dump())
        return
    for timing in calibration.timings:
        unit = "Gflop/s" if timing.unit == "flops" else "GB/s"
        milliseconds = f"{timing.seconds * 1e3:10.2f} ms"
        click.echo(f"{timing.name:<66}{milliseconds}{timing.rate / 1e9:10.1f} {unit}")
    click.echo(f"hardware '{LOCAL}' in {path}")
