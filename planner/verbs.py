"""A click group whose subcommands are the files of a folder, imported when they are used."""

import ast
import errno
import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import click

from planner.errors import InfeasibleError, ParetuneError, Relaxation, did_you_mean
from planner.interrupts import INTERRUPTED

AS_JSON = "paretune.json"
"""Key of a context's meta: whether the command line asks for JSON."""


class Failure(click.ClickException):
    """Printed as `error: …` and, after a blank line, `hint: …`; with `--json` on stdout too, as one
    document.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None,
        exit_code: int,
        relaxations: Sequence[Relaxation] = (),
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code  # type: ignore[misc]
        self.relaxations = relaxations
        self.as_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            click.echo(json.dumps(self.document(), indent=2))
        click.echo(f"error: {self.message}", file=file, err=True)
        if self.hint:
            click.echo(f"\nhint: {self.hint}", file=file, err=True)

    def document(self) -> dict[str, object]:
        from planner.plan import SCHEMA_VERSION  # noqa: PLC0415, `--help` needs none of it

        error: dict[str, object] = {
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }
        if self.relaxations:
            error["relaxations"] = [relaxation._asdict() for relaxation in self.relaxations]
        return {"schema_version": SCHEMA_VERSION, "error": error}


class Verbs(click.Group):
    """The subcommands of the folder listing; import_adapter.py is the verb import-adapter."""

    def __init__(self, *, package: ModuleType, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(**settings)
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = [module.name for module in pkgutil.iter_modules(self.package.__path__)]
        return sorted(name.replace("_", "-") for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(self._module(cmd_name)).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise Failure(
                f"unknown command '{args[0]}'; commands are {', '.join(known)}",
                hint=did_you_mean(args[0], known),
                exit_code=2,
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Takes each summary from the source, so that `--help` imports no subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summary(name)) for name in self.list_commands(ctx)])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[AS_JSON] = "--json" in args
        with failures(as_json=ctx.meta[AS_JSON]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        with failures(as_json=ctx.meta[AS_JSON]):
            try:
                return super().invoke(ctx)
            except click.UsageError as error:
                # The parser of a verb's options says nothing of the verb.
                if error.ctx is None and isinstance(ctx.invoked_subcommand, str):
                    command = self.get_command(ctx, ctx.invoked_subcommand)
                    error.ctx = click.Context(command or self, ctx, ctx.invoked_subcommand)
                raise

    def _module(self, verb: str) -> str:
        return f"{self.package.__name__}.{verb.replace('-', '_')}"

    def _summary(self, verb: str) -> str:
        """The first line of the verb's module."""
        spec = importlib.util.find_spec(self._module(verb))
        if spec is None or spec.origin is None:
            return ""
        source = Path(spec.origin).read_text("utf-8")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


@contextmanager
def failures(*, as_json: bool = False) -> Iterator[None]:
    """Turns what a user can cause or meet into a message and an exit code."""
    try:
        with _messages():
            yield
    except Failure as failure:
        failure.as_json = as_json
        raise


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except ParetuneError as error:
        found = error.relaxations if isinstance(error, InfeasibleError) else ()
        raise Failure(
            str(error), hint=error.hint, exit_code=error.exit_code, relaxations=found
        ) from error
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise _usage_failure(error) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # a reader such as `head` that has seen enough
            raise
        place = f": {error.filename}" if error.filename else ""
        raise Failure(
            f"{_lower(error.strerror or str(error))}{place}", hint=None, exit_code=1
        ) from (error)
    except KeyboardInterrupt as error:
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from error


def _usage_failure(error: click.UsageError) -> Failure:
    command = error.ctx.command_path if error.ctx else "command"
    message, hint = _lower(error.format_message().rstrip(".")), f"try '{command} --help'"
    if isinstance(error, click.NoSuchOption):
        message = f"no such option: {error.option_name}"
        hint = did_you_mean(error.option_name, error.possibilities or ()) or hint
    return Failure(message, hint=hint, exit_code=error.exit_code)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
