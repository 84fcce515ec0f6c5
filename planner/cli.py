"""The command `planner`: one file of planner/commands per verb, imported when it is used."""

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


if __name__ == "__main__":
    main()
