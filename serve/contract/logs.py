"""Format of the service's log records: one line each, with request id and application."""

from __future__ import annotations

import logging
import time
import traceback

# The logger that every module uses.
SERVICE_LOGGER = "tabrank"
# Ray Serve's logger of a replica's file: text, or JSON with `logging_config: {encoding: JSON}`.
RAY_LOGGER = "ray.serve"
WARN_EVERY_S = 10.0
# Failures count as lasting until this long after the last one; then nobody knows any more.
LASTS_S = 60.0
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
CONTROL |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def of_request(request_id: str | None, trace_id: str | None = None) -> dict[str, str]:
    """Return the `extra` of a log record about a request: those of its ids that are not None."""
    ids = {"request_id": request_id, "trace_id": trace_id}
    return {name: value for name, value in ids.items() if value is not None}


class SeldomWarning:
    """Log failures, at most one in ten seconds for each reason.

    When a whole service fails, thousands of requests may fail for the same reason.
    """

    def __init__(self) -> None:
        # Monotonic time and error of the last warning for each reason.
        self._warned: dict[str, tuple[float, Exception]] = {}
        # Failures that no success has followed, by reason: their number, the times of the first and
        # the last, and the last error.
        self._lasting: dict[str, tuple[int, float, float, Exception]] = {}

    def __call__(self, reason: str, error: Exception, request_id: str | None = None) -> None:
        """Log a failure with its request id."""
        now_s = time.monotonic()
        num, first_s, *_ = self._lasting.get(reason, (0, now_s))
        self._lasting[reason] = num + 1, first_s, now_s, error
        if reason not in self._warned or now_s - self._warned[reason][0] >= WARN_EVERY_S:
            self._warned[reason] = now_s, error
            logging.getLogger(SERVICE_LOGGER).warning(
                "%s: %s: %s", reason, type(error).__name__, error, extra=of_request(request_id)
            )

    def recent(self, reason: str) -> Exception | None:
        """Return the failure that was logged for a reason in the last ten seconds, or None."""
        warned_s, error = self._warned.get(reason, (float("-inf"), None))
        # A failure that lasts is logged again within a second after that.
        return error if time.monotonic() - warned_s < WARN_EVERY_S + 1 else None

    def lasting(self, reason: str) -> tuple[int, float, Exception] | None:
        """Return the failures for a reason that no success has followed, if there are several.

        They are a tuple: their number, the age of the first one, and the last error.
        """
        num, first_s, last_s, error = self._lasting.get(reason, (0, 0.0, 0.0, Exception()))
        now_s = time.monotonic()
        return (num, now_s - first_s, error) if num > 1 and now_s - last_s < LASTS_S else None

    def ended(self, reason: str) -> None:
        """Note that what failed for a reason has succeeded again."""
        self._lasting.pop(reason, None)


class OneLine(logging.Filter):
    """Filter that escapes control characters, so that no client input starts a new log line.

    An id may hold any character, newlines included.
    """

    def __init__(self, application: str) -> None:
        super().__init__()
        self._application = application

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the record's message and request id, and let it pass."""
        record.msg, record.args = escaped(record.getMessage()), ()
        if "request_id" in record.__dict__:
            record.__dict__["request_id"] = escaped(str(record.__dict__["request_id"]))
        record.application = self._application
        return True


def escaped(text: str) -> str:
    """Return the text with its control characters escaped."""
    return text.translate(CONTROL)


def write_traceback(record: logging.LogRecord) -> bool:
    """Format the record's traceback, indented, so that none of its lines looks like a record.

    `logging` itself would print the traceback, but in a replica Ray 2.60 replaces `print` by a
    function that writes its arguments as a tuple.
    """
    if record.exc_info and not record.exc_text:
        lines = "".join(traceback.format_exception(*record.exc_info)).rstrip().split("\n")
        record.exc_text = "\n".join(f"    {escaped(line)}" for line in lines)
    return True


def join_ray(application: str) -> None:
    """Send our records to Ray Serve's handlers, with level, deployment and replica.

    Call it once in a process.
    """
    ours, rays = logging.getLogger(SERVICE_LOGGER), logging.getLogger(RAY_LOGGER)
    ours.parent = rays
    rays.addFilter(write_traceback)
    # Ray's `log_level` decides. The call also clears the level cached from the old parent.
    ours.setLevel(logging.NOTSET)
    ours.filters = [OneLine(application), write_traceback]
