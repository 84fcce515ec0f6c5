"""Who may import whom: planner ← compiler, and no torch where a server or a planner runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"planner": {"planner"}, "compiler": {"planner", "compiler"}}
HEAVY = {
    "bitsandbytes",
    "networkx",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "peft",
    "torch",
    "transformers",
}
TORCH_FREE = (
    "compiler.adapter",
    "compiler.artifact",
    "compiler.bank",
    "compiler.cli",
    "compiler.data",
    "compiler.generation",
    "compiler.lower",
    "compiler.peft",
    "compiler.session",
    "compiler.tokenizer",
    "planner",
    "planner.cli",
)
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for layer in LAYERS
    for path in (ROOT / layer).rglob("*.py")
}


def imports(path: Path, *, at_import: bool) -> set[str]:
    """Dotted names that a file imports: all of them, or those reached by importing it."""
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif not (at_import and skipped_at_import(node)):
            pending += ast.iter_child_nodes(node)
    return found


def skipped_at_import(node: ast.AST) -> bool:
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    return typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def modules_of(name: str) -> list[str]:
    """The modules of ours that importing `name` runs: its packages, and itself if it is one."""
    parts = name.split(".")
    return [m for n in range(len(parts)) if (m := ".".join(parts[: n + 1])) in MODULES]


def reached(name: str) -> dict[str, str]:
    """Heavy packages that importing a module of ours brings, each with the module that does."""
    seen: set[str] = set()
    heavy = {}
    pending = modules_of(name)
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        for imported in imports(MODULES[module], at_import=True):
            if imported.split(".")[0] in HEAVY:
                heavy[imported] = module
            pending += modules_of(imported)
    return heavy


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_no_layer_above_it(layer: str) -> None:
    ours = {"planner", "compiler", "kernels", "specs", "tests"}
    stray = {
        (name, imported)
        for name, path in MODULES.items()
        if name.split(".")[0] == layer
        for imported in imports(path, at_import=False)
        if imported.split(".")[0] in ours - LAYERS[layer]
    }
    assert stray == set()


@pytest.mark.parametrize("name", TORCH_FREE)
def test_serving_and_planning_reach_no_heavy_package(name: str) -> None:
    assert name in MODULES
    assert reached(name) == {}


def test_building_does_reach_torch() -> None:
    assert "torch" in {name.split(".")[0] for name in reached("compiler.build")}


@pytest.mark.parametrize("name", ["planner", "compiler.session", "compiler.cli"])
def test_importing_loads_no_heavy_package(name: str) -> None:
    code = f"import {name}, sys; print(*({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.split() == []
