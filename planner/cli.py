"""The command `planner`: one file of planner/commands per verb, imported when it is used."""

import gc
import os

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

    Looking for plugins of pydantic reads the metadata of every installed package, and collecting
    garbage walks what has just been imported; neither changes an answer.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()
    main()


if __name__ == "__main__":
    start()
