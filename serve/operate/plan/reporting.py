"""Report a FeatureFetch replica's counts to the simulated controller, as often as Ray does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

from serve.operate.plan.context import SimulationContext
from serve.operate.plan.policy import COUNT_FACTOR, Series
from serve.operate.plan.replica import Core, Replica

# Replicas do not report in step: each begins at a random time within half a second.
MAX_DELAY_S = 0.5


async def report_counts(
    context: SimulationContext,
    deployment: str,
    replica: Replica,
    core: Core,
    count: Callable[[], Mapping[str, float]],
) -> None:
    """Report the counts on which the deployment is scaled, until the replica has ended."""
    loop, policy = asyncio.get_running_loop(), context.policy
    scaling = policy.scaling[deployment]
    send_s, look_back_s = float(scaling.metrics_interval_s), float(scaling.look_back_period_s)
    count_s = min(look_back_s * COUNT_FACTOR, send_s)
    series: Series = defaultdict(list)

    async def keep_counting() -> None:
        while not replica.has_ended:
            for name, value in count().items():
                series[name].append((loop.time(), value))
            await asyncio.sleep(count_s)
            # The replica's event loop counts once it is free.
            await core.work(0.0)

    async def keep_sending() -> None:
        while not replica.has_ended:
            oldest_s = loop.time() - look_back_s
            for name, points in list(series.items()):
                series[name] = [point for point in points if point[0] > oldest_s]
            policy.report(
                deployment, replica.name, {name: points for name, points in series.items() if points}
            )
            await asyncio.sleep(send_s)

    await asyncio.sleep(context.rng.random() * MAX_DELAY_S)
    await asyncio.gather(keep_counting(), keep_sending())
