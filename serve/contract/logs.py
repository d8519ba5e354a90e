"""Our log lines: one line each whatever is in them, under the request and the application that they are about."""

from __future__ import annotations

import logging
import traceback

OURS = "tabrank"  # every module's logger
RAYS = "ray.serve"  # writes a replica's file, as text or, with `logging_config: {encoding: JSON}`, as JSON
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}


def of_request(request_id: str | None, trace_id: str | None = None) -> dict[str, str]:
    """The `extra` of a line about a request: its ids, as far as they are known."""
    ids = {"request_id": request_id, "trace_id": trace_id}
    return {name: value for name, value in ids.items() if value is not None}


class OneLine(logging.Filter):
    """Nothing that a client wrote begins a line of its own: an id may hold any character, a newline too."""

    def __init__(self, application: str | None = None) -> None:
        super().__init__()
        self._application = application

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, its message and ids on one line."""
        record.msg, record.args = escaped(record.getMessage()), ()
        if "request_id" in record.__dict__:
            record.__dict__["request_id"] = escaped(str(record.__dict__["request_id"]))
        if self._application is not None:
            record.application = self._application
        return True


def escaped(text: str) -> str:
    """The text with its control characters written out."""
    return text.translate(CONTROL)


def write_traceback(record: logging.LogRecord) -> bool:
    """Write out the record's traceback, indented, so that no line of it looks like a record of its own.

    `logging` would print it. In a replica Ray 2.60 replaces `print` by one that writes its arguments as a tuple.
    """
    if record.exc_info and not record.exc_text:
        lines = "".join(traceback.format_exception(*record.exc_info)).rstrip().split("\n")
        record.exc_text = "\n".join(f"    {escaped(line)}" for line in lines)
    return True


def join_ray(application: str) -> None:
    """Have our lines go where Ray Serve's go, with their level, deployment and replica; once a process."""
    ours, rays = logging.getLogger(OURS), logging.getLogger(RAYS)
    ours.parent = rays
    rays.addFilter(write_traceback)
    ours.setLevel(
        logging.NOTSET
    )  # Ray's `log_level` decides; and what was cached of the old parent is forgotten
    ours.filters = [OneLine(application), write_traceback]
