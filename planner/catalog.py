"""The catalogue: hardware and models from specs/, and the shapes behind a model's name or path."""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, cast

from planner import architecture as shapes
from planner.architecture import Architecture
from planner.errors import UsageError, did_you_mean
from planner.spec import Hardware

Json = dict[str, object]

OTHERWISE = {
    "models": "a model may also be a config.json or its folder",
    "hardware": "in a spec, hardware may also be a section: kind, memory_gib and what is known",
}
"""Hints for a name that is near to none."""


class Model(NamedTuple):
    """A model the planner can reason about, with the config it was read from."""

    name: str
    architecture: Architecture
    config: Mapping[str, object]


def config_digest(config: Mapping[str, object]) -> str:
    """sha256 over the shape fields of a config.json; equal for equal architectures."""
    return shapes.digest(config)


@cache
def specs_folder() -> Path:
    """specs/ of the installed package, or of the source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "specs"
    return installed if installed.is_dir() else package.parent / "specs"


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names in one folder of specs/: "hardware", "models" or "examples"."""
    return tuple(sorted(path.stem for path in (specs_folder() / kind).glob("*.json")))


def entry(kind: str, name: str) -> Json:
    """One catalogue file; raises UsageError with the nearest name."""
    known = names(kind)
    if name not in known:
        noun = kind.removesuffix("s")
        raise UsageError(
            f"unknown {noun} '{name}'; `planner {kind}` lists the {len(known)} of the catalogue",
            hint=did_you_mean(name.lower(), known) or OTHERWISE[kind],
        )
    return read_object(specs_folder() / kind / f"{name}.json")


def read_object(path: Path) -> Json:
    """A JSON object from a file; raises UsageError that names the file and what is wrong."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_said_once)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or 'failed').lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds {type(found).__name__}, not a JSON object")
    return cast(Json, found)


def _said_once(pairs: list[tuple[str, object]]) -> Json:
    """Of a key that is said twice json would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' is said twice")
    return found


def hardware(choice: str | Hardware) -> Hardware:
    """The device of that catalogue name, the one given, or as "local" the machine measured here."""
    if isinstance(choice, Hardware):
        return choice
    if choice == "local":
        from planner.calibration import local  # noqa: PLC0415, it reads through this module

        return local()
    stated = entry("hardware", choice)
    # The tests hold every file to the class; to build its validator would take start-up time.
    known = {each.name: stated[each.name] for each in fields(Hardware) if each.name in stated}
    return Hardware.model_construct(**known)


def model(choice: str | Mapping[str, object]) -> Model:
    """The model of a catalogue name, hub id, path of a config.json or its folder, or a config.

    A catalogue name wins over a folder of the same name.
    """
    if not isinstance(choice, str):
        return _from_config(str(choice.get("_name_or_path") or "config"), choice)
    if choice in names("models"):
        return _from_config(choice, config_of(entry("models", choice)))
    path = Path(choice)
    if path.exists() or choice.endswith(".json"):
        file = path / "config.json" if path.is_dir() else path
        return _from_config(file.resolve().parent.name, read_object(file))
    hubs = {entry("models", name)["hub_id"]: name for name in names("models")}
    name = str(hubs.get(choice, choice))
    return _from_config(name, config_of(entry("models", name)))


def config_of(model: Json) -> Json:
    """The config in a model's entry."""
    return cast(Json, model["config"])


def _from_config(name: str, config: Mapping[str, object]) -> Model:
    return Model(name=name, architecture=_architecture(json.dumps(config)), config=config)


@lru_cache(maxsize=64)
def _architecture(config: str) -> Architecture:
    """Of a config's JSON; kept, because a relaxed spec asks for the same model again."""
    return shapes.architecture(json.loads(config))
