"""How commands of rayfm behave: help with examples and groups of options, one line for an error, exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

import click

from rayfm.errors import HyperparameterError, RayfmError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes; 0 is success."""

HELP_WIDTH = 110
OTHER_OPTIONS = "Options"

Function = TypeVar("Function", bound=Callable[..., Any])
Examples = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Session:
    """What all commands of one invocation share; click's ``context.obj``."""

    debug: bool = False


class GroupedOption(click.Option):
    """An option that ``--help`` lists under a heading of its own."""

    def __init__(self, *args: Any, heading: str = OTHER_OPTIONS, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.heading = heading


class _Taught(click.Command):
    """A command whose help says what it does, shows examples, then lists its options under headings."""

    def __init__(self, *args: Any, examples: Examples = (), **rest: Any) -> None:
        rest.setdefault("context_settings", {}).update(max_content_width=HELP_WIDTH)
        rest["context_settings"].setdefault("help_option_names", ["-h", "--help"])
        super().__init__(*args, **rest)
        self._examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, then the examples."""
        super().format_help_text(ctx, formatter)
        with formatter.section("Examples"):
            for index, (purpose, line) in enumerate(self._examples):
                margin = " " * formatter.current_indent
                formatter.write("\n" * bool(index) + f"{margin}# {purpose}\n")
                formatter.write("".join(f"{margin}{part}\n" for part in line.split("\n")))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading in the order of their first options."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                headings.setdefault(getattr(parameter, "heading", OTHER_OPTIONS), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=34)


class Command(_Taught):
    """A command of rayfm."""


class CommandGroup(_Taught, click.Group):
    """The commands of rayfm, and what becomes of their errors."""

    def __init__(self, *args: Any, commands: Sequence[click.Command] = (), **rest: Any) -> None:
        super().__init__(*args, commands={command.name: command for command in commands}, **rest)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a user meets them."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands before the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(args[0], self.commands, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are {', '.join(self.commands)}."
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **rest: Any,
    ) -> Any:
        """Run a command and exit with its code; without `standalone_mode`, let errors through."""
        session = rest.setdefault("obj", Session(debug=os.environ.get("RAYFM_DEBUG", "0") not in ("", "0")))
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **rest)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **rest)
        except Exception as error:
            _fail(error, session)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception, session: Session) -> NoReturn:
    """Say in a line or two what went wrong, and exit."""
    if session.debug:
        traceback.print_exception(error)
    if isinstance(error, click.Abort):
        click.echo(f"rayfm: {str(error) or 'interrupted.'}", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"rayfm: error: {_message(error, session)}", err=True)
    for note in getattr(error, "__notes__", []):
        click.echo(note, err=True)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
    wrong_usage = isinstance(error, click.UsageError | HyperparameterError)
    sys.exit(WRONG_USAGE if wrong_usage else FAILED)


def _message(error: Exception, session: Session) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if not isinstance(error, RayfmError | OSError):
        return f"{type(error).__name__}: {error}. This should not happen; RAYFM_DEBUG=1 shows where it did."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and not session.debug:  # a remote traceback: its first line says where, its last line why
        return f"{lines[0][:300]} … {lines[-1][:300]} (RAYFM_DEBUG=1 shows all of it)"
    return str(error)


class _Echo(logging.Handler):
    """Writes to whatever standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        click.echo(f"rayfm: {record.levelname.lower()}: {record.getMessage()}", err=True)


def show_warnings() -> None:
    """Let what the library logs reach the user."""
    logger = logging.getLogger("rayfm")
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.addHandler(_Echo(logging.WARNING))


def debug_option(function: Function) -> Function:
    """Add ``--debug``, which may stand before and after the name of the command."""

    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and isinstance(context.obj, Session):
            context.obj.debug = True

    return click.option(
        "--debug", is_flag=True, expose_value=False, is_eager=True, callback=remember,
        help="Show the traceback of an error; RAYFM_DEBUG=1 does too.",
    )(function)  # fmt: skip
