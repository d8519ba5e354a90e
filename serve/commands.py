"""How a package's commands end: exit code 0 held, 1 did not hold, 2 could not be run."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from serve.errors import TabrankError


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
