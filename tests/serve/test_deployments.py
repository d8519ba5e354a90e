"""What the deployments promise Ray, without a cluster."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray's, at import


def test_a_file_without_user_config_configures_the_replica_all_the_same():
    from serve.deployments import FeatureFetch

    assert FeatureFetch.user_config == {}, "with None Ray never calls reconfigure, and nothing is kept fresh"


def test_a_replica_whose_loop_has_ended_is_unwell():
    from serve.deployments import FeatureFetch

    replica = SimpleNamespace(_refreshing=None)  # itself it would end with a coroutine that nobody awaits
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
