"""The autoscaling policy, alone and in the service whose queue it is designed for."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import pytest

from serve.config.scaling import Steady


@pytest.mark.parametrize(
    ("wanted", "has", "runs", "asked"),
    [
        (0.9, 1, 1, 1),
        (1.1, 1, 1, 2),
        (3.4, 1, 1, 2),  # a queue says too much, not how much
        (3.4, 2, 1, 2),  # while the second starts nothing more is asked for, and nothing given back
        (3.4, 2, 2, 4),
        (1.5, 2, 2, 2),
        (0.6, 2, 2, 2),  # one would do, but not with room
        (0.5, 2, 2, 1),
        (0.0, 4, 4, 0),  # bounds are Ray's to apply
        (1.0, 1, 0, 1),
    ],
)
def test_replicas_come_above_the_target_and_go_well_below_it(wanted, has, runs, asked):
    assert Steady().replicas(wanted, has, runs) == asked


def context(ongoing, has, runs=None, target=2.0):
    return SimpleNamespace(
        total_num_requests=ongoing,
        target_num_replicas=has,
        current_num_replicas=has if runs is None else runs,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: target),
    )


def test_the_policy_divides_what_is_ongoing_by_the_target():
    assert Steady()(context(3.9, 1)) == (2, {})
    assert Steady()(context(1.0, 2)) == (1, {})


def test_how_far_below_the_target_is_for_the_file_to_say():
    assert Steady(leave=0.7).replicas(0.7, 2, 2) == 1
    with pytest.raises(ValueError, match=r"leave must be a number above 0 and below 1 \(got 1\.5\)"):
        Steady(leave=1.5)


def ongoing(load, num_replicas):
    """Queueing requests, if each replica serves one at a time (M/M/1), bounded by a deadline."""
    share = load / num_replicas
    return num_replicas * (min(share / (1 - share), 6.0) if share < 1 else 6.0)


def settled(load, decide):
    """Return the numbers of replicas that a constant load goes through."""
    has, seen = 1, [1]
    for _ in range(20):
        has = min(max(decide(ongoing(load, has), has), 1), 4)
        seen.append(has)
    return seen


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9, 1.1, 1.3, 1.6])
def test_a_constant_load_comes_to_rest(load):
    seen = settled(load, lambda total, has: Steady()(context(total, has))[0])
    assert len(set(seen[5:])) == 1, seen


def test_rays_own_rule_does_not_come_to_rest():
    """The reason for our own policy: when this test fails, use Ray's."""
    # Ray warns about its own declarations.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve._private.common import DeploymentID
        from ray.serve.autoscaling_policy import default_autoscaling_policy
        from ray.serve.config import AutoscalingConfig, AutoscalingContext

    config = AutoscalingConfig(
        min_replicas=1, max_replicas=4, target_ongoing_requests=2, upscale_delay_s=0, downscale_delay_s=0
    )

    def decide(total, has):
        name = DeploymentID("Scorer")
        found = AutoscalingContext(
            deployment_id=name, deployment_name="Scorer", app_name="a", current_num_replicas=has,
            target_num_replicas=has, running_replicas=[], total_num_requests=total, total_queued_requests=0,
            aggregated_metrics={}, raw_metrics={}, capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=4, policy_state={}, last_scale_up_time=None,
            last_scale_down_time=None, current_time=0.0, config=config,
        )  # fmt: skip
        return math.ceil(default_autoscaling_policy(found)[0])

    assert len(set(settled(0.7, decide)[5:])) == 2
