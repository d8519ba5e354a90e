"""Histograms of a replica, sent to the node's agent of Ray, which shows them on its metrics page.

Ray's own `Histogram` replays each observation in the agent, which costs 40 µs of CPU for a value.
The agent also accepts finished histograms, in the OpenCensus format of older versions of Ray. This
takes one call every few seconds, whatever the traffic is. The agent shows them as histograms of
Prometheus, with their true sums.

A call carries all observations since the start of the replica, so a lost call loses nothing. The
agent forgets a replica that has been silent for two minutes.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from serve.contract.metric_catalog import Metric

APPLICATION = "application"
# Without this label two replicas of a node would have the same series. Ray names it `WorkerId`,
# which `promtool check metrics` refuses.
PROCESS = "worker_id"
# A call that takes longer is given up, because the next one carries more.
CALL_TIMEOUT_S = 5.0
log = logging.getLogger("tabrank")
Labels = tuple[str, ...]


class Histogram:
    """Observations of one metric by labels; a series begins with its first observation."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        # By labels, the number of observations in each bucket, and the sum of the observations.
        self.series: defaultdict[Labels, tuple[list[int], list[float]]]
        self.series = defaultdict(lambda: ([0] * (len(metric.bounds) + 1), [0.0]))

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Add an observation, in the unit of the metric."""
        counts, total = self.series[labels]
        counts[bisect_left(self.metric.bounds, value)] += 1
        total[0] += value


def agent(application: str) -> tuple[Callable[[Iterable[Histogram]], Any], float]:
    """Return a function that sends histograms to this node's agent, and its interval in seconds.

    The function returns at once, with the call as a future, and logs a failed call.
    """
    import ray
    from ray._common.network_utils import build_address
    from ray._private import worker
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import reporter_pb2, reporter_pb2_grpc

    node, process = worker.global_worker.node, ray.get_runtime_context().get_worker_id()
    channel = init_grpc_channel(build_address(node.node_ip_address, node.metrics_agent_port))
    call = reporter_pb2_grpc.ReporterServiceStub(channel).ReportOCMetrics

    def send(histograms: Iterable[Histogram]) -> Any:
        metrics = [_encoded(histogram, application, process) for histogram in histograms if histogram.series]
        request = reporter_pb2.ReportOCMetricsRequest(metrics=metrics, worker_id=bytes.fromhex(process))
        future = call.future(request, timeout=CALL_TIMEOUT_S)
        future.add_done_callback(lambda done: _warn(done.code().name))
        return future

    # The interval at which Ray sends the counters.
    return send, max(1.0, ray._config.metrics_report_interval_ms() / 1e3)


@cache
def _warn(code: str) -> None:
    """Log once that calls fail."""
    if code != "OK":
        log.warning("histograms are missing from the metrics page: Ray's agent answers %s", code)


def _encoded(histogram: Histogram, application: str, process: str) -> Any:
    """Return the histogram in the format of OpenCensus: `count` observations in each bucket."""
    from ray.core.generated import metrics_pb2

    metric, encoded = histogram.metric, metrics_pb2.Metric()
    descriptor = encoded.metric_descriptor
    descriptor.name, descriptor.description = metric.name, metric.what
    descriptor.type = metrics_pb2.MetricDescriptor.CUMULATIVE_DISTRIBUTION
    for key in (APPLICATION, *metric.labels, PROCESS):
        descriptor.label_keys.add(key=key)
    for labels, (counts, (total,)) in histogram.series.items():
        series = encoded.timeseries.add()
        for value in (application, *labels, process):
            series.label_values.add(value=value)
        distribution = series.points.add().distribution_value
        distribution.count, distribution.sum = sum(counts), total
        distribution.bucket_options.explicit.bounds.extend(metric.bounds)
        for count in counts:
            distribution.buckets.add(count=count)
    return encoded
