"""The options that several commands have, and how commands end: exit code 0 held, 1 did not hold, 2 did not run."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from serve.contract.errors import TabrankError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunFolder = Annotated[Path, typer.Option(help="Where the service keeps its logs and process ids.")]
ConfigFile = Annotated[Path, typer.Argument(help="The file that declares the service.")]
CONFIG = Path("cluster.yaml")
RUN = Path("var/run")


class Commands(TyperGroup):
    """Commands of which none exits with 1 but where it says that something did not hold.

    A user's mistake is one sentence on stderr, Ctrl-C and SIGTERM too; what nobody foresaw is a traceback. All exit
    with 2, as wrong usage does.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that both unwind what was begun
        try:
            try:
                return super().invoke(ctx)
            finally:
                # Now, while a reader that is gone, such as `head`, can still be told from a failure.
                sys.stdout.flush()
        except TabrankError as error:
            print(error, file=sys.stderr)
        except (KeyboardInterrupt, typer.Abort):
            print("interrupted; what was under way is not finished", file=sys.stderr)
        except Exception as error:
            # typer's own: wrong usage, --help, an exit that a command chose, and a closed pipe, which it keeps quiet
            if hasattr(error, "exit_code") or isinstance(error, BrokenPipeError):
                raise
            traceback.print_exc()
        raise typer.Exit(2)
