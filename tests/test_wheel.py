"""The built wheel in a clean environment, away from the checkout."""

import json
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HUB_KERNELS = "kernels==0.17.2"
"""Hugging Face's package, whose import name a folder of ours shares."""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of an environment with the wheel, Hugging Face's kernels and our dependencies."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", wheel, HUB_KERNELS)
    packages = run(python, "-c", "import site; print(site.getsitepackages()[0])").strip()
    # Dependencies are taken from here: as a plain path, its own .pth files have no effect.
    (Path(packages) / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


def test_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"planner", "compiler", "paretune-0.1.0.dist-info"}
    assert {"planner/py.typed", "compiler/py.typed", "compiler/libparetune_ops.so"} <= set(names)
    assert any(name.startswith("planner/specs/hardware/") for name in names)
    assert "planner/page.html" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".cpp", ".h"))]


def test_installed_packages_come_from_the_wheel(clean: Path, tmp_path: Path) -> None:
    code = (
        "import json, compiler.session, kernels, planner, transformers; "
        "from compiler.engine import library_path; "
        "from transformers import LlamaForCausalLM; "
        "files = [planner.__file__, compiler.session.__file__, kernels.__file__]; "
        "print(json.dumps([*files, str(library_path())]))"
    )
    found = json.loads(run(clean / "python", "-W", "ignore", "-c", code, cwd=tmp_path))
    assert [path for path in found if not path.startswith(str(clean.parent))] == []


def test_installed_commands_run_elsewhere(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(
        json.dumps({"model": "smollm2-135m", "task": "causal_lm", "vram_gib": 16})
    )
    run(clean / "planner", "recommend", "spec.json", "--out", "plan.json", cwd=tmp_path)
    assert (tmp_path / "plan.json").is_file()
    assert "run" in run(clean / "compiler", "--help", cwd=tmp_path)
