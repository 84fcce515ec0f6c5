"""The planner's layer: light, and free of torch, ONNX and the compiler."""

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import planner
from planner import catalog

PACKAGE = Path(planner.__file__).parent
ALLOWED = {"planner", "pydantic", "pydantic_core", "click"} | set(sys.stdlib_module_names)
ON_USE = {"numpy", "networkx", "matplotlib"}
"""Imported inside the functions that need them; `recommend` loads none."""
HEAVY = {"torch", "onnx", "onnxruntime", "transformers", "numpy", "networkx", "compiler"}
HEAVY |= {"pydantic"}  # its Python half; planner/section.py does without


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_planner_imports_only_its_own_layer() -> None:
    stray = {
        str(file.relative_to(PACKAGE)): extra
        for file in PACKAGE.rglob("*.py")
        if (extra := imported(file) - ALLOWED - ON_USE)
    }
    assert stray == {}


def test_exported_names() -> None:
    names = {"Spec", "Plan", "Case", "Frontier", "recommend", "frontier", "estimate"}
    assert names <= set(planner.__all__)
    # A module of the same name would hide the function.
    assert all(callable(getattr(planner, name)) for name in planner.__all__)


def loaded_after(code: str) -> set[str]:
    script = f"{code}; import json, sys; print(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return set(json.loads(found.stdout))


def test_recommend_loads_nothing_heavy() -> None:
    code = (
        "from planner import Spec, recommend; "
        "recommend(Spec(model='smollm2-135m', task='causal_lm', vram_gib=16))"
    )
    assert loaded_after(code) & HEAVY == set()


def test_a_bare_import_does_not_even_load_pydantic() -> None:
    assert "pydantic" not in loaded_after("import planner, planner.errors, planner.method")


def processor_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


SMALLEST_PROGRAM = """
import click
from pydantic import BaseModel
class Smallest(BaseModel):
    field: int = 1
Smallest()
"""


def test_recommend_costs_no_more_than_pydantic() -> None:
    """From a cold process, against a program that only loads pydantic and click: 0.8 of it here.

    A bound in seconds would measure the machine's other work.
    """
    spec = str(catalog.specs_folder() / "examples" / "smollm2-tenants.json")
    command = f"""
import sys
from planner.cli import start
sys.argv = ["planner", "recommend", {spec!r}]
start()
"""
    pairs = [(processor_seconds(command), processor_seconds(SMALLEST_PROGRAM)) for _ in range(5)]
    assert min(pair[0] for pair in pairs) < 1.2 * min(pair[1] for pair in pairs)
