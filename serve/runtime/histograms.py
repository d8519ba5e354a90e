"""Histograms of a replica, sent to Ray's agent of the node, which shows them on its metrics page.

Ray's own `Histogram` replays each observation in the agent: 40 µs of CPU for a value. The agent
also takes finished histograms, in the OpenCensus format of older versions of Ray: one call every
few seconds, whatever the traffic. It shows them as histograms of Prometheus, with their true sums.

A call carries all observations since the start of the replica, so a lost call loses nothing. The
agent forgets a replica that has been silent for two minutes.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

from serve.contract.metric_catalog import Metric

APPLICATION = "application"
# Ray's label of the process; without it two replicas of a node would have the same series.
PROCESS = "WorkerId"
# A call that takes longer is worth less than the next one.
CALL_TIMEOUT_S = 5.0
log = logging.getLogger("tabrank")
Labels = tuple[str, ...]
Send = Callable[["Iterable[Histogram]"], None]


class Histogram:
    """Observations of one metric by labels; a series begins with its first observation."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._bounds = metric.bounds
        # By labels: the number of observations in each bucket, and the sum of the observations.
        self.series: dict[Labels, tuple[list[int], list[float]]] = {}

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Add an observation, in the unit of the metric."""
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = ([0] * (len(self._bounds) + 1), [0.0])
        series[0][bisect_left(self._bounds, value)] += 1
        series[1][0] += value


def agent(application: str) -> tuple[Send, float]:
    """Return a function that sends histograms to this node's agent, and its interval in seconds.

    The function returns at once. It logs the first failed call.
    """
    import ray
    from ray._common.network_utils import build_address
    from ray._private import worker
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import reporter_pb2, reporter_pb2_grpc

    node, process = worker.global_worker.node, ray.get_runtime_context().get_worker_id()
    channel = init_grpc_channel(build_address(node.node_ip_address, node.metrics_agent_port))
    call = reporter_pb2_grpc.ReporterServiceStub(channel).ReportOCMetrics
    failed = False

    def done(future: Any) -> None:
        nonlocal failed
        if future.exception() is not None and not failed:
            failed = True
            log.warning("histograms are missing from the metrics page: %s", future.exception())

    def send(histograms: Iterable[Histogram]) -> None:
        metrics = [_encoded(histogram, application, process) for histogram in histograms if histogram.series]
        request = reporter_pb2.ReportOCMetricsRequest(metrics=metrics, worker_id=bytes.fromhex(process))
        call.future(request, timeout=CALL_TIMEOUT_S).add_done_callback(done)

    # The interval at which Ray sends the counters.
    return send, max(1.0, ray._config.metrics_report_interval_ms() / 1e3)


def _encoded(histogram: Histogram, application: str, process: str) -> Any:
    """Return the histogram in the format of OpenCensus: `count` observations in each bucket."""
    from ray.core.generated.metrics_pb2 import Metric as Encoded
    from ray.core.generated.metrics_pb2 import MetricDescriptor

    metric, encoded = histogram.metric, Encoded()
    descriptor = encoded.metric_descriptor
    descriptor.name, descriptor.description = metric.name, metric.what
    descriptor.type = MetricDescriptor.CUMULATIVE_DISTRIBUTION
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
