"""The shape of the repository: what lies where, under which names, and what is pinned."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "compiler",
    "constraints.txt",
    "kernels",
    "planner",
    "pyproject.toml",
    "specs",
    "tests",
}
VAGUE_FILES = {"common", "core", "helper", "helpers", "misc", "util", "utils"}
VAGUE_CLASSES = re.compile(r"^class \w*(Manager|Handler|Helper|Wrapper|Service|Factory)\b", re.M)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def ignored() -> set[str]:
    patterns = (ROOT / ".gitignore").read_text("utf-8").split()
    return {pattern.strip("/") for pattern in patterns} | {".git"}


def test_top_level_holds_what_it_should() -> None:
    assert {path.name for path in ROOT.iterdir()} - ignored() == TOP_LEVEL


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", ["kernels", "specs"])
def test_folder_is_no_python_package(folder: str) -> None:
    assert python_files(folder) == []


def test_tests_are_no_package() -> None:
    assert [path for path in python_files("tests") if path.name == "__init__.py"] == []


@pytest.mark.parametrize("folder", ["planner", "compiler", "tests"])
def test_names_say_what_is_inside(folder: str) -> None:
    assert [path for path in python_files(folder) if path.stem in VAGUE_FILES] == []
    assert [p for p in python_files(folder) if VAGUE_CLASSES.search(p.read_text("utf-8"))] == []


@pytest.mark.parametrize("package", ["planner", "compiler"])
def test_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_its_range() -> None:
    wanted = PROJECT["build-system"]["requires"] + PROJECT["project"]["dependencies"]
    requirements = [Requirement(line) for line in wanted + EXTRAS["cpu"] + EXTRAS["dev"]]
    known = pins()
    outside = [r for r in requirements if not r.specifier.contains(known.get(normal(r.name), "0"))]
    assert outside == []


def test_planning_and_serving_need_no_torch() -> None:
    names = {Requirement(line).name for line in PROJECT["project"]["dependencies"]}
    assert names & {"torch", "transformers", "onnx"} == set()


def test_the_two_runtimes_exclude_each_other() -> None:
    runtimes = {
        extra: {Requirement(line).name for line in lines if line.startswith("onnxruntime")}
        for extra, lines in EXTRAS.items()
    }
    assert runtimes == {
        "cpu": {"onnxruntime"},
        "gpu": {"onnxruntime-gpu"},
        "plot": set(),
        "dev": set(),
    }
