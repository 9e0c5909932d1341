"""The command line: one group of commands, and the one place where faults become messages and exit statuses."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from emfc.cli import bench, check, evaluate, graph, infer, sample, score, train
from emfc.errors import UserError

__all__ = ["app", "main"]

DONE, OUR_FAULT, USER_FAULT, INTERRUPTED = 0, 1, 2, 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

PLAIN_WORDS = {
    r"Input should be a valid integer.*": "it needs a whole number",
    r"Input should be a valid number.*": "it needs a number",
    r"Input should be less than or equal to (\S+?)\.?$": r"it must be at most \1",
    r"Input should be greater than or equal to (\S+?)\.?$": r"it must be at least \1",
}


class Commands(TyperGroup):
    """The commands; every fault of the user ends in one message on standard error and status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt as error:
            print(f"emfc: {error if error.args else 'interrupted; nothing was kept'}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _close_output()
            raise typer.Exit(DONE) from None
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            _close_output()
            raise UserError(f"cannot write the output: {error.strerror}") from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            _refuse_empty(sys.argv[1:] if args is None else args)
            status = super().main(
                args=args,
                prog_name=prog_name or "emfc",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except Exception as error:
            status = _report(error)
        if not standalone_mode:
            return status
        sys.exit(status if isinstance(status, int) else DONE)


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an empty argument, which would be taken for the current folder."""
    for before, word in zip(("emfc", *words), words, strict=False):
        option, equals, value = word.partition("=")
        if not word.strip():
            raise UserError(f"the argument after {before!r} is empty; give a path or another value there")
        if option.startswith("--") and equals and not value.strip():
            raise UserError(f"the value of {option} is empty; give a path or another value there")


def _close_output() -> None:
    """Let nothing more be written to a standard output that takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    """Say what went wrong in one message, and give the exit status."""
    if os.environ.get("EMFC_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, UserError) or type(error).__name__ == "CompileError":
        print(f"emfc: {error}", file=sys.stderr)
        return USER_FAULT
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _report_usage(error)
    told = f"{type(error).__name__}: {error}"
    print(f"emfc: a fault of emfc itself: {told} (set EMFC_DEBUG=1 to see where)", file=sys.stderr)
    return OUR_FAULT


def _report_usage(error: Any) -> int:
    """Bad usage, as the command-line library reports it."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return USER_FAULT
    command = context.command_path if context is not None else "emfc"
    message = str(error.format_message()).replace("Value error, ", "").strip()
    for odd, plain in PLAIN_WORDS.items():
        message = re.sub(odd, plain, message)
    stop = "" if message.endswith((".", "?")) else "."
    print(f"{command}: {message}{stop} See `{command} --help`.", file=sys.stderr)
    return USER_FAULT


app = typer.Typer(
    name="emfc",
    cls=Commands,
    help="Compile a probabilistic program into layers of a normalizing flow, train it, draw from it and score with it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (check, graph, train, infer, sample, score, evaluate, bench):
    _module.register(app)


def main() -> None:
    """Run the command line."""
    app()
