"""The contract of the deployments with Ray, without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import weakref
from functools import partial
from types import SimpleNamespace

import grpc
import pytest

from serve.contract.errors import Busy, TooLarge
from serve.log.events import pack

# Ray warns about its own models at import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def test_a_file_without_user_config_configures_the_replica_all_the_same():
    from serve.deployments import FeatureFetch

    assert FeatureFetch.user_config == {}, "with None Ray never calls reconfigure, and nothing is kept fresh"


def test_a_replica_counts_those_that_share_the_rate_of_a_key(monkeypatch):
    from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

    from serve import deployments

    states = [{"RUNNING": 1, "STARTING": 1}, {"RUNNING": 3, "STOPPING": 1}, None, {"STARTING": 1}]
    seen, keys = [], SimpleNamespace(num_replicas=1)

    def status():
        seen.append(keys.num_replicas)
        if (states_now := states[min(len(seen), len(states)) - 1]) is None:
            raise ConnectionError("the controller restarts")
        common = {"status": "HEALTHY", "message": ""}
        deployment = DeploymentStatusOverview(
            **common, status_trigger="UNSPECIFIED", replica_states=states_now
        )
        application = ApplicationStatusOverview(
            **(common | {"status": "RUNNING"}),
            last_deployed_time_s=0.0,
            deployments={"FeatureFetch": deployment},
        )
        return ServeStatus(applications={"tiny": application})

    async def scenario():
        counting = asyncio.create_task(deployments._share_rates(keys))
        while len(seen) <= len(states):
            await asyncio.sleep(0.01)
        counting.cancel()

    me = SimpleNamespace(app_name="tiny", deployment="FeatureFetch")
    monkeypatch.setattr(deployments.serve, "get_replica_context", lambda: me)
    monkeypatch.setattr(deployments.serve, "status", status)
    monkeypatch.setattr(deployments, "COUNT_S", 0.0)
    asyncio.run(scenario())
    assert seen[:5] == [1, 1, 3, 3, 1]


def test_a_replica_whose_loop_has_ended_is_unwell():
    from serve.deployments import FeatureFetch

    # A real replica would end with a coroutine that nobody awaits.
    replica = SimpleNamespace(_refreshing=None)
    is_well = partial(FeatureFetch.func_or_class.check_health, replica)

    async def fail():
        raise ConnectionError("a fault of ours")

    async def scenario():
        await is_well()
        replica._refreshing = asyncio.create_task(fail())
        await is_well()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await is_well()
        replica._refreshing = asyncio.create_task(asyncio.sleep(0))
        await replica._refreshing
        with pytest.raises(RuntimeError, match="has ended"):
            await is_well()

    asyncio.run(scenario())


class FailedCall:
    """A call like Ray's: it keeps its exception, whose traceback leads to frames with the call."""

    def __init__(self, error):
        self.error = error
        self.payload = bytes(1_000)

    def __await__(self):
        yield
        try:
            raise ConnectionError("beneath")
        except ConnectionError:
            raise self.error  # noqa: B904 - as Ray does


@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError])
def test_a_failed_call_leaves_nothing_behind_for_the_garbage_collector(error):
    from serve.deployments import _answer

    async def scenario():
        calls = [FailedCall(error())]
        left = weakref.ref(calls[0])
        with contextlib.suppress(error):
            await _answer(calls.pop())
        return left()

    gc.disable()
    try:
        assert asyncio.run(scenario()) is None
    finally:
        gc.enable()


def test_a_call_that_grpc_refuses_for_its_size_is_too_large():
    from serve.deployments import _answer

    refusal = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "larger than max"
    )
    with pytest.raises(TooLarge, match="larger than max"):
        asyncio.run(_answer(FailedCall(refusal)))


def test_a_refusal_by_ingest_crosses_ray_as_a_value_and_is_raised_by_the_caller():
    """Ray would log an exception as an error, with a traceback."""
    from serve.deployments import Ingest, _answer

    class Full:
        async def take(self, records, num_bytes):
            raise Busy("20000 records are waiting")

    async def scenario():
        replica = SimpleNamespace(_running=True, _ingester=Full())
        returned = pickle.dumps(await Ingest.func_or_class.take(replica, pack([])))

        async def call():
            return pickle.loads(returned)

        with pytest.raises(Busy, match="20000 records are waiting"):
            await _answer(call())

    asyncio.run(scenario())
