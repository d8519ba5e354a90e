"""Spans of rankings, where a client asks for them by a W3C `traceparent` that is sampled.

Rankings take a short way past Ray's tracing (`serve.runtime.fast_path`), so their spans are made here, after the
answer and from its own timing: a request without the header pays one look into a dictionary. They go where Ray's
`tracing_config` sends Ray's, by any exporter that it names; two are here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.contract.errors import TabrankError

if TYPE_CHECKING:
    from serve.contract.rankings import RankAnswer

TRACEPARENT = b"traceparent"
RUN_FOLDER = "TABRANK_RUN"  # of the environment: where `python -m serve up` keeps what it writes
STAGES = ("queue", "features", "score")


def parent_of(headers: Mapping[bytes, bytes]) -> Any:
    """The caller's trace context; None where the header is malformed or the caller does not sample, as W3C has it."""
    try:
        from opentelemetry.trace import get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    carrier = {
        name: headers[name.encode()].decode("latin-1")
        for name in ("traceparent", "tracestate")
        if name.encode() in headers
    }
    context = TraceContextTextMapPropagator().extract(carrier)
    span = get_current_span(context).get_span_context()
    return context if span.is_valid and span.trace_flags.sampled else None


def trace_id_of(parent: Any) -> str:
    """The id of a caller's trace, as it wrote it."""
    from opentelemetry.trace import format_trace_id, get_current_span

    return format_trace_id(get_current_span(parent).get_span_context().trace_id)


def record(parent: Any, answer: RankAnswer) -> None:
    """Export a ranking that was just answered: one span, and one for each stage in it."""
    from opentelemetry.trace import SpanKind, get_tracer, set_span_in_context

    tracer = get_tracer("tabrank")  # of Ray's provider; without a `tracing_config` its spans go nowhere
    timing, ended_ns = answer.timing_ms, time.time_ns()
    begun_ns = ended_ns - _ns(timing.total)
    span = tracer.start_span("rank", parent, SpanKind.SERVER, _attributes(answer), start_time=begun_ns)
    within = set_span_in_context(span)
    for stage in STAGES:  # one after the other; what rounding and the answer itself take is the queue's
        until_ns = begun_ns + _ns(getattr(timing, stage))
        tracer.start_span(stage, within, start_time=begun_ns).end(until_ns)
        begun_ns = until_ns
    span.end(ended_ns)


def _ns(milliseconds: float) -> int:
    return int(milliseconds * 1e6)


def _attributes(answer: RankAnswer) -> dict[str, Any]:
    named = {"experiment": answer.experiment, "model": answer.model}
    return {
        "request_id": answer.request_id,
        "surface": answer.surface,
        "arm": answer.arm,
        "rung": answer.rung,
        "degraded": list(answer.degraded),
        "candidates": len(answer.ranking),
    } | {name: value for name, value in named.items() if value is not None}


def to_file() -> list[Any]:
    """`exporter_import_path: serve.http.tracing:to_file`: JSON, a line a span, in `spans/` of the run folder."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    folder = Path(os.environ.get(RUN_FOLDER, "var/run")) / "spans"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (folder / f"{os.getpid()}.jsonl").open("a", buffering=1)

    class Lines(ConsoleSpanExporter):
        def shutdown(self) -> None:
            lines.close()

    exporter = Lines(out=lines, formatter=lambda span: span.to_json(indent=None) + "\n")
    return [BatchSpanProcessor(exporter, schedule_delay_millis=1_000)]


def to_otlp() -> list[Any]:
    """`exporter_import_path: serve.http.tracing:to_otlp`: to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise TabrankError(
            "tracing_config.exporter_import_path: serve.http.tracing:to_otlp needs the package "
            "opentelemetry-exporter-otlp-proto-http; install it on every node"
        ) from None
    return [BatchSpanProcessor(OTLPSpanExporter())]
