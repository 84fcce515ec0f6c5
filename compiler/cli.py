"""The command `compiler`: one file of compiler/commands per verb, imported when it is used."""

import click

import compiler.commands
from planner.interrupts import heed_interrupts
from planner.verbs import Verbs


@click.group(
    cls=Verbs,
    package=compiler.commands,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="paretune", prog_name="compiler")
def main() -> None:
    """Build, inspect and run artifacts: many tenants on one base model."""


def start() -> None:
    """The process of one command."""
    heed_interrupts()
    main()


if __name__ == "__main__":
    start()
