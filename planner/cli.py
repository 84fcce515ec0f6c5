"""The command `planner`: one file of planner/commands per verb, imported when it is used."""

import gc
import os
import sys
from types import ModuleType

import click

import planner.commands
from planner.verbs import Verbs


@click.group(
    cls=Verbs,
    package=planner.commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: planner recommend spec.json --out plan.json",
)
@click.version_option(package_name="paretune", prog_name="planner")
def main() -> None:
    """Declare task, hardware and tenants; get the PEFT method that fits, with reasons."""


def start() -> None:
    """The process of one command: it answers in a fraction of a second and is gone.

    Collecting garbage walks what has just been imported, and at the end it would all be freed piece
    by piece; looking for plugins of pydantic imports what reads the metadata of every
    installed package. None of it changes an answer.
    """
    gc.disable()
    sys.modules["pydantic.plugin._loader"] = _without_plugins()
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by the caller
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else bool(end.code))


def _without_plugins() -> ModuleType:
    """Stands for pydantic's module of that name, whose one function finds none."""
    loader = ModuleType("pydantic.plugin._loader")
    loader.get_plugins = lambda: ()  # type: ignore[attr-defined]
    return loader


if __name__ == "__main__":
    start()
