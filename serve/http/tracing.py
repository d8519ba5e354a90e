"""Tracing: export the spans of rankings whose clients send a sampled W3C `traceparent`.

Rankings bypass Ray's tracing (`serve.runtime.fast_path`). Their spans are created here after the
answer, from the answer's timing, so a request without the header pays only a dictionary lookup.
Spans go to the exporter that Ray's `tracing_config` names; this module provides two. Names follow
OpenTelemetry's conventions for HTTP servers and feature flags (semantic conventions 1.44): an
experiment is a flag, and its arm the variant.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer

TRACEPARENT = b"traceparent"
# Environment variable with the folder where `python -m serve up` keeps its files.
RUN_FOLDER = "TABRANK_RUN"
STAGES = ("queue", "features", "score")
# Name of the tracer of Ray's provider. Without a `tracing_config` it discards the spans.
TRACER = "tabrank"


def parent_of(headers: Mapping[bytes, bytes]) -> Any:
    """Return the caller's trace context; None if the header is malformed or not sampled (W3C)."""
    named = (TRACEPARENT, b"tracestate")
    carrier = {name.decode(): headers[name].decode("latin-1") for name in named if name in headers}
    context = TraceContextTextMapPropagator().extract(carrier)
    span = trace.get_current_span(context).get_span_context()
    return context if span.is_valid and span.trace_flags.sampled else None


def trace_id_of(parent: Any) -> str:
    """Return the id of the caller's trace, in the caller's notation."""
    return trace.format_trace_id(trace.get_current_span(parent).get_span_context().trace_id)


def record(parent: Any, scope: Mapping[str, Any], answer: RankAnswer) -> None:
    """Export the spans of an answered ranking: one for the request, and one for each stage."""
    timing, ended_ns = answer.timing_ms, time.time_ns()
    begun_ns = ended_ns - _ns(timing.total)
    span = _started(parent, scope, 200, begun_ns, _attributes(answer))
    if answer.experiment is not None:
        flag = {"key": answer.experiment, "result.variant": answer.arm, "provider.name": "tabrank"}
        named = {f"feature_flag.{name}": value for name, value in flag.items()}
        span.add_event("feature_flag.evaluation", named, begun_ns)
    within, tracer = trace.set_span_in_context(span), trace.get_tracer(TRACER)
    # The stages follow each other. What rounding and encoding leave over counts as queue.
    for stage in STAGES:
        until_ns = begun_ns + _ns(getattr(timing, stage))
        tracer.start_span(stage, within, start_time=begun_ns).end(until_ns)
        begun_ns = until_ns
    span.end(ended_ns)


def record_failed(parent: Any, scope: Mapping[str, Any], status: int, seconds: float) -> None:
    """Export the span of a ranking that was refused, or that failed (5xx)."""
    error, ended_ns = ({"error.type": str(status)} if status >= 500 else {}), time.time_ns()
    span = _started(parent, scope, status, ended_ns - _ns(seconds * 1e3), error)
    if error:
        span.set_status(trace.StatusCode.ERROR)
    span.end(ended_ns)


def _started(parent: Any, scope: Mapping[str, Any], status: int, begun_ns: int, more: dict[str, Any]) -> Any:
    """Return the span of a request."""
    method, path = scope["method"], scope["path"]
    http = {"http.request.method": method, "http.route": path, "http.response.status_code": status}
    attributes = {**http, "url.path": path, "url.scheme": scope.get("scheme", "http"), **more}
    name, kind = f"{method} {path}", trace.SpanKind.SERVER
    return trace.get_tracer(TRACER).start_span(name, parent, kind, attributes, start_time=begun_ns)


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
    """Return the exporter that writes JSON lines to `spans/` in the run folder.

    Use it with `exporter_import_path: serve.http.tracing:to_file`.
    """
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
    """Return the exporter to the OTLP collector in OTEL_EXPORTER_OTLP_ENDPOINT.

    Use it with `exporter_import_path: serve.http.tracing:to_otlp`.
    """
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise TabrankError(
            "tracing_config.exporter_import_path: serve.http.tracing:to_otlp needs the package "
            "opentelemetry-exporter-otlp-proto-http; install it on every node"
        ) from None
    return [BatchSpanProcessor(OTLPSpanExporter())]
