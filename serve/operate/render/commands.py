"""`python -m serve render`: a sub-command for each kind of file."""

from __future__ import annotations

import json
import sys

import typer

from serve.contract.errors import TabrankError
from serve.operate.render.options import SUB_COMMANDS, Kubernetes, Options, Systemd


def _write(options: Options) -> None:
    """Write the file of a sub-command; `options` is what the sub-command returned."""
    # Importing Ray takes a second.
    from serve.config.reader import read
    from serve.operate.render.kubernetes import kubernetes
    from serve.operate.render.systemd import systemd

    config = read(options.config)
    match options:
        case Kubernetes():
            text = kubernetes(config, options)
        case Systemd():
            text = systemd(config, options)
    out = options.out
    if out:
        try:
            out.write_text(text)
        except OSError as error:
            raise TabrankError(f"--out {out}: {error.strerror}; name a file that can be written") from None
        print(f"written: {out}", file=sys.stderr)
    if options.as_json:
        print(json.dumps({"out": str(out) if out else None, "text": None if out else text}))
    elif not out:
        print(text, end="")


render = typer.Typer(no_args_is_help=True, result_callback=_write)
for options in SUB_COMMANDS:
    # A sub-command is the class of its options: it returns them, and `_write` gets them.
    render.command(options.__name__.lower())(options)
