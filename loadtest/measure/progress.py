"""Progress line of a run: updated in place on a terminal, printed every ten seconds elsewhere."""

from __future__ import annotations

from time import perf_counter
from typing import TextIO

import gevent

from loadtest.measure.measure import RequestLog, Requests, percentile

LIVE_S = 1.0
PLAIN_S = 10.0


def progress_line(requests: Requests, since_s: float, now_s: float) -> str:
    """Return the progress line for requests that ended between the two times.

    Example: `12 s  903 req/s  p50 8.1  p99 21 ms  errors 0`.
    """
    ok = int(requests.ok.sum())
    p50_ms, p99_ms = (percentile(requests.latency_ms, share, requests.ok) for share in (0.5, 0.99))
    rate = f"{ok / (now_s - since_s):.0f} req/s"
    return f"{now_s:.0f} s  {rate}  p50 {_ms(p50_ms)}  p99 {_ms(p99_ms)} ms  errors {len(requests.ok) - ok}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def show_progress(record: RequestLog, warmup_s: float, out: TextIO) -> None:
    """Print progress lines until the greenlet of this function is killed."""
    live = out.isatty()
    begins, since_s, first = perf_counter(), 0.0, 0
    while True:
        gevent.sleep(LIVE_S if live else PLAIN_S)
        now_s = perf_counter() - begins
        requests = record.requests(first)
        first += len(requests.ok)
        line = progress_line(requests, since_s, now_s) + ("  (warm-up)" if now_s < warmup_s else "")
        print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=out, flush=True)
        since_s = now_s
