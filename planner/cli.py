"""The command `planner`: one file of planner/commands per verb, imported when it is used."""

import os
import sys

import click

import planner.commands
from planner.interrupts import heed_interrupts
from planner.quick_start import quick_start
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
    """The process of one command; at its end nothing is freed piece by piece."""
    heed_interrupts()
    quick_start()
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by the caller
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else bool(end.code))


if __name__ == "__main__":
    start()
