"""`python -m serve render`: write the files with which another system runs the service."""

from __future__ import annotations

import sys

import typer

from serve.contract.errors import TabrankError
from serve.operate.render.options import Kubernetes


def _write(options: Kubernetes) -> None:
    """Write the objects; `options` is what the sub-command returned."""
    # Importing Ray takes a second.
    from serve.config.reader import read
    from serve.operate.render.kubernetes import kubernetes

    text = kubernetes(read(options.config), options)
    if options.out is None:
        print(text, end="")
        return
    try:
        options.out.write_text(text)
    except OSError as error:
        raise TabrankError(
            f"--out {options.out}: {error.strerror}; name a file that can be written"
        ) from None
    print(f"written: {options.out}", file=sys.stderr)


render = typer.Typer(no_args_is_help=True, result_callback=_write)
# The sub-command is the class of its options: it returns them, and `_write` gets them.
render.command("kubernetes")(Kubernetes)
