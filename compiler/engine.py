"""ONNX Runtime holding one graph: loading it, feeding it, and its failures as sentences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
from onnxruntime.capi import (  # type: ignore[import-untyped]
    onnxruntime_pybind11_state as state,
)

import compiler
from planner.errors import IncompatibleError, ParetuneError

Array = npt.NDArray[Any]


class Value(Protocol):
    """A tensor that ONNX Runtime holds."""

    def numpy(self) -> Array: ...


Feed = Array | Value

FAILURES = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
"""What ONNX Runtime raises; the types have no common base below Exception."""

FATAL_ONLY = 4
"""ONNX Runtime's log level: what it would log as an error is raised as one."""

LIBRARY = "libparetune_ops.so"


def library_path() -> Path:
    """The op library of this package; an editable install has it in a folder of its own."""
    paths = [Path(folder, LIBRARY) for folder in compiler.__path__]
    for path in paths:
        if path.is_file():
            return path
    raise ParetuneError(
        f"the op library is missing: {paths[0]}",
        hint="`pip install paretune` builds it; in a checkout, `make` does",
    )


class Engine:
    """A loaded graph; `inputs` and `outputs` are its names, `ranks` the inputs' dimensions."""

    def __init__(self, model: Path, *, library: Path | None, threads: int | None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = FATAL_ONLY
        if library is not None:
            _register(options, library)
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except FAILURES as error:
            raise IncompatibleError(f"'{model}' does not load: {_sentence(error)}") from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.ranks = {value.name: len(value.shape) for value in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Feed], outputs: tuple[str, ...]) -> dict[str, Value]:
        """The named outputs. Arrays are read where they lie, values move back in without a copy."""
        values = {name: _value(feed) for name, feed in feeds.items()}
        try:
            found = self._session.run_with_ort_values(list(outputs), values)
        except FAILURES as error:
            raise ParetuneError(f"the graph does not run: {_sentence(error)}") from error
        return dict(zip(outputs, found, strict=True))


def _register(options: onnxruntime.SessionOptions, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except FAILURES as error:
        raise ParetuneError(
            f"the op library '{library}' does not load: {_sentence(error)}",
            hint="install paretune again for this machine",
        ) from error


def _value(feed: Feed) -> Value:
    if not isinstance(feed, np.ndarray):
        return feed
    value: Value = onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(feed, order="C"))
    return value


def _sentence(error: Exception) -> str:
    """The last part of ONNX Runtime's message, after its "[ONNXRuntimeError] : 2 : NAME : "."""
    return str(error).strip().splitlines()[0].split(" : ", 3)[-1].rstrip(".")
