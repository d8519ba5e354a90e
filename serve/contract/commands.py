"""Options that several commands share, and their exit codes.

Exit code 0: the check held. 1: it did not hold. 2: the command could not run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from serve.contract.errors import TabrankError
from serve.contract.validation import spelled

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunFolder = Annotated[Path, typer.Option(help="Where the service keeps its logs and process ids.")]
ConfigFile = Annotated[Path, typer.Argument(help="The file that declares the service.")]
AnyRunFolder = Annotated[
    Path | None, typer.Option("--run", help="The run folder of `up`.  [default: var/run]")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Use this Ray cluster's dashboard instead: http://HOST:8265.", envvar="RAY_DASHBOARD_ADDRESS"
    ),
]
# Environment variable with the API key, for a service that requires one.
API_KEY = "TABRANK_API_KEY"
CONFIG = Path("cluster.yaml")
RUN = Path("var/run")


class Commands(TyperGroup):
    """Command group that reserves exit code 1 for a check that did not hold.

    A user error, Ctrl-C and SIGTERM print one sentence on stderr. An unexpected exception prints
    its traceback. All of these exit with 2, as wrong usage does.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments select."""
        # SIGTERM raises KeyboardInterrupt like Ctrl-C, so both run the cleanup code.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            try:
                return super().invoke(ctx)
            finally:
                # Flush here: a closed pipe (`| head`) then raises BrokenPipeError below.
                sys.stdout.flush()
        except TabrankError as error:
            print(error, file=sys.stderr)
        except (KeyboardInterrupt, typer.Abort):
            print("interrupted; the command did not finish", file=sys.stderr)
        except Exception as error:
            # typer handles its own exceptions (usage, --help, a chosen exit) and closed pipes.
            if hasattr(error, "exit_code") or isinstance(error, BrokenPipeError):
                raise
            if isinstance(error, OSError) and "://" in str(error.filename):
                # A bucket cannot be reached, or refuses the request.
                print(f"{error.filename}: {error.strerror}", file=sys.stderr)
            elif ctx.obj and isinstance(error, ModuleNotFoundError) and _is_missing(error.name):
                remedy = f"run `python -m pip install 'tabrank[{ctx.obj}]'`"
                print(f"{ctx.invoked_subcommand} needs the package {error.name}; {remedy}", file=sys.stderr)
            else:
                traceback.print_exc()
        raise typer.Exit(2)


def command_line(about: str | None, extra: str = "", **options: Any) -> typer.Typer:
    """Return the command line of a package, whose docstring is its help.

    `extra` is the extra of tabrank with the packages that the commands import. If one is missing,
    the message names that extra.
    """
    return typer.Typer(
        cls=Commands,
        help=about,
        context_settings={"obj": extra},
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        **options,
    )


def _is_missing(module: str | None) -> bool:
    """Return True if a whole package is missing, and not only a module of one that was imported."""
    return bool(module) and sys.modules.get(str(module).partition(".")[0]) is None


class Parts:
    """Parts of a command: shows a line when each begins, and afterwards how long it took."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._line, self._since_s = show, "", 0.0

    def begin(self, line: str) -> None:
        """Show that a part begins."""
        self.end()
        self._show(line)
        self._line, self._since_s = line, time.monotonic()

    def end(self) -> None:
        """Show how long the last part took, if it took a second or more."""
        took_s = time.monotonic() - self._since_s
        if self._line and took_s >= 1:
            self._show(f"{shorten(self._line, 60, placeholder=' …')}: took {spelled(took_s)}")
        self._line = ""


def key_header() -> dict[str, str]:
    """Return the header with the API key; empty if the environment holds no key."""
    key = os.environ.get(API_KEY)
    return {"X-Api-Key": key} if key else {}


def answer(result: dict[str, Any], as_json: bool, text: str, *, held: bool = True) -> None:
    """Print a command's result on stdout, as one JSON object or text; exit with 1 if not `held`."""
    print(json.dumps(result, allow_nan=False) if as_json else text)
    if not held:
        raise typer.Exit(1)
