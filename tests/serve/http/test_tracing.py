"""Spans of a ranking below the caller's trace, if the caller samples."""

from __future__ import annotations

import json

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import feature_flag_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from opentelemetry.trace import SpanKind

from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer, Timing
from serve.http.tracing import RUN_FOLDER, parent_of, record, record_failed, to_file, to_otlp, trace_id_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
SCOPE = {"method": "POST", "path": "/v1/rank", "scheme": "http"}


def answered(experiment=None):
    timing = Timing(queue=1.0, features=2.0, score=3.0, total=6.0)
    return RankAnswer(
        "r1", "tiny", "0123456789ab", experiment, "model", "v1", "full", [], False, [], 5.0, timing, []
    )


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(opentelemetry.trace, "get_tracer", provider.get_tracer)
    return exporter.get_finished_spans


def test_a_ranking_is_a_span_under_the_caller_s_with_one_for_each_stage(spans):
    record(parent_of({b"traceparent": SAMPLED.encode()}), SCOPE, answered())
    by_name = {span.name: span for span in spans()}
    rank = by_name.pop("POST /v1/rank")
    assert rank.parent.span_id == int(SPAN, 16)
    assert (rank.attributes["request_id"], rank.attributes["rung"]) == ("r1", "full")
    assert list(by_name) == ["queue", "features", "score"]
    assert {f"{span.context.trace_id:032x}" for span in [rank, *by_name.values()]} == {TRACE}
    assert {span.parent.span_id for span in by_name.values()} == {rank.context.span_id}
    took_ms = {name: round((span.end_time - span.start_time) / 1e6) for name, span in by_name.items()}
    assert took_ms == {"queue": 1, "features": 2, "score": 3}
    assert by_name["features"].start_time == by_name["queue"].end_time
    assert rank.start_time == by_name["queue"].start_time


def test_names_follow_the_conventions_for_http_servers_and_feature_flags(spans):
    record(parent_of({b"traceparent": SAMPLED.encode()}), SCOPE, answered("launch"))
    rank = next(span for span in spans() if span.kind == SpanKind.SERVER)
    http = {
        http_attributes.HTTP_REQUEST_METHOD: "POST",
        http_attributes.HTTP_ROUTE: "/v1/rank",
        http_attributes.HTTP_RESPONSE_STATUS_CODE: 200,
        url_attributes.URL_PATH: "/v1/rank",
        url_attributes.URL_SCHEME: "http",
    }
    assert http.items() <= rank.attributes.items()
    assert error_attributes.ERROR_TYPE not in rank.attributes
    (evaluation,) = rank.events
    assert evaluation.name == "feature_flag.evaluation"
    assert dict(evaluation.attributes) == {
        feature_flag_attributes.FEATURE_FLAG_KEY: "launch",
        feature_flag_attributes.FEATURE_FLAG_RESULT_VARIANT: "model",
        feature_flag_attributes.FEATURE_FLAG_PROVIDER_NAME: "tabrank",
    }
    assert evaluation.timestamp == rank.start_time


def test_outside_an_experiment_no_flag_is_evaluated(spans):
    record(parent_of({b"traceparent": SAMPLED.encode()}), SCOPE, answered())
    assert not any(span.events for span in spans())


@pytest.mark.parametrize(("status", "error"), [(429, None), (422, None), (500, "500"), (503, "503")])
def test_a_failed_ranking_is_a_span_and_a_server_error_an_error(spans, status, error):
    record_failed(parent_of({b"traceparent": SAMPLED.encode()}), SCOPE, status, 0.25)
    (span,) = spans()
    assert span.attributes[http_attributes.HTTP_RESPONSE_STATUS_CODE] == status
    assert span.attributes.get(error_attributes.ERROR_TYPE) == error
    assert span.status.is_ok == (error is None)
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(0.25)


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{SPAN}-00",  # not sampled
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        "",
        "what\xff",
    ],
)
def test_what_is_not_sampled_or_malformed_is_ignored(header):
    assert parent_of({b"traceparent": header.encode("latin-1")}) is None


def test_a_later_version_and_other_flags_are_read_as_the_standard_has_it():
    parent = parent_of({b"traceparent": f"cc-{TRACE}-{SPAN}-03-more".encode(), b"tracestate": b"a=1"})
    assert trace_id_of(parent) == TRACE


def test_spans_go_to_a_file_of_the_run_folder_a_line_each(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_FOLDER, str(tmp_path))
    provider = TracerProvider()
    for processor in to_file():
        provider.add_span_processor(processor)
    monkeypatch.setattr(opentelemetry.trace, "get_tracer", provider.get_tracer)
    record(parent_of({b"traceparent": SAMPLED.encode()}), SCOPE, answered())
    provider.shutdown()
    (path,) = (tmp_path / "spans").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["context"]["trace_id"] for line in lines} == {f"0x{TRACE}"}
    assert len(lines) == 4


def test_otlp_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    with pytest.raises(TabrankError, match="opentelemetry-exporter-otlp-proto-http"):
        to_otlp()
