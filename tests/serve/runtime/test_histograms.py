"""The metrics page that Ray's agent makes of what a replica sends, without a cluster."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import grpc
import pytest
import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray._private import worker
from ray._private.metrics_agent import OpenCensusProxyCollector
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
from ray.core.generated import reporter_pb2, reporter_pb2_grpc

from serve.contract.metric_catalog import METRICS
from serve.operate.status.scrape import Page, parse
from serve.runtime import histograms
from serve.runtime.histograms import Histogram, agent

PROCESS = "ab" * 28


class Agent(reporter_pb2_grpc.ReporterServiceServicer):
    """Ray's agent of a node, less everything but its page of histograms."""

    def __init__(self):
        self.collector = OpenCensusProxyCollector("ray")
        self.got = Event()

    def ReportOCMetrics(self, request, context):  # noqa: N802 - as Ray names it
        self.collector.record(request.metrics, request.worker_id.hex())
        self.got.set()
        return reporter_pb2.ReportOCMetricsReply()

    def page(self):
        assert self.got.wait(5)
        registry = CollectorRegistry()
        registry.register(self.collector)
        return generate_latest(registry).decode()


@pytest.fixture
def ray_agent(monkeypatch):
    ray_agent, server = Agent(), grpc.server(ThreadPoolExecutor(1))
    reporter_pb2_grpc.add_ReporterServiceServicer_to_server(ray_agent, server)
    node = SimpleNamespace(
        node_ip_address="127.0.0.1", metrics_agent_port=server.add_insecure_port("127.0.0.1:0")
    )
    server.start()
    monkeypatch.setattr(worker, "global_worker", SimpleNamespace(node=node))
    context = SimpleNamespace(get_worker_id=lambda: PROCESS)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_agent.stop = server.stop
    yield ray_agent
    server.stop(None)


def observed(metric, values, labels=()):
    histogram = Histogram(metric)
    for value in values:
        histogram.observe(value, labels)
    return histogram


def test_the_page_has_histograms_with_the_true_sum_and_count(ray_agent):
    send, every_s = agent("spaces")
    assert every_s >= 1
    latency = observed(METRICS["tabrank_latency_seconds"], (0.001, 0.0123, 0.1, 7.0), ("launch", "model"))
    send([latency, observed(METRICS["tabrank_batch_candidates"], ())])
    (family,) = text_string_to_metric_families(ray_agent.page())
    assert (family.name, family.type) == ("ray_tabrank_latency_seconds", "histogram")
    ours = {"application": "spaces", "experiment": "launch", "arm": "model", "worker_id": PROCESS}
    values = {
        sample.name.rpartition("_")[2] + sample.labels.pop("le", ""): sample for sample in family.samples
    }
    assert all(sample.labels == ours for sample in values.values())
    bounds = ("0.001", "0.01", "0.015", "0.075", "0.1", "1.0", "+Inf")
    assert [values[f"bucket{le}"].value for le in bounds] == [1, 1, 2, 2, 3, 3, 4]
    assert (values["count"].value, values["sum"].value) == (4, pytest.approx(7.1133))


def test_a_call_carries_all_since_the_start(ray_agent):
    send, _ = agent("spaces")
    latency = observed(METRICS["tabrank_latency_seconds"], (0.02,), ("", "model"))
    for _ in range(3):
        send([latency])
        ray_agent.page()
        ray_agent.got.clear()
        latency.observe(0.02, ("", "model"))
    send([latency])
    assert [value for (name, _), value in parsed(ray_agent).items() if name.endswith("_count")] == [4]


def test_ray_takes_no_histogram_without_an_observation(ray_agent):
    # So a series cannot begin at 0, and rates lack its first report (docs/metrics.md says so).
    empty = Histogram(METRICS["tabrank_batch_candidates"])
    empty.series[()]
    with pytest.raises(ZeroDivisionError):
        ray_agent.collector.record([histograms._encoded(empty, "spaces", PROCESS)], PROCESS)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def parsed(ray_agent) -> dict:
    page: Page = parse(ray_agent.page(), 0.0)
    return page.values


def test_an_agent_that_is_gone_costs_no_ranking_and_one_warning(ray_agent, caplog):
    send, _ = agent("spaces")
    histograms._warn.cache_clear()
    ray_agent.stop(None).wait()
    with caplog.at_level("WARNING", "tabrank"):
        for _ in range(2):
            failed = send([observed(METRICS["tabrank_latency_seconds"], (0.02,), ("", "model"))])
            assert failed.exception(5) is not None
        assert until(lambda: caplog.text)
    assert caplog.text.count("histograms are missing from the metrics page") == 1


@pytest.mark.integration
@pytest.mark.no_ray
def test_promtool_has_no_complaint_about_our_metrics(ray_agent):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    send, _ = agent("spaces")
    send([observed(m, m.bounds, m.labels) for m in METRICS.values() if m.kind == "histogram"])
    others = OpenTelemetryMetricRecorder()
    for metric in METRICS.values():
        if metric.kind != "histogram":
            register = others.register_gauge_metric if metric.is_gauge else others.register_counter_metric
            register(metric.name, metric.what)
            others.set_metric_value(metric.name, dict.fromkeys(metric.labels, "x"), 1.0)
    page = ray_agent.page() + generate_latest().decode()
    families = {
        line.split()[2]: line.split()[3] for line in page.splitlines() if line.startswith("# TYPE ray_")
    }
    assert families == {metric.exported: metric.kind for metric in METRICS.values()}
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ray_")]
    assert complaints == []
