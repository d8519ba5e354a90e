"""Count restarts and their reasons from rows of Ray's table of actors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext, OomContext

from serve.operate.host.service_state import ApplicationState, DeploymentState, Restarted
from serve.operate.run.restarts import ENDED, MAX_TIMES, MEMORY, UNHEALTHY, Restarts

KILLED = ActorDeathCause(
    actor_died_error_context=ActorDiedErrorContext(reason=ActorDiedErrorContext.Reason.RAY_KILL)
)
DIED = ActorDeathCause(
    actor_died_error_context=ActorDiedErrorContext(reason=ActorDiedErrorContext.Reason.WORKER_DIED)
)
OUT_OF_MEMORY = ActorDeathCause(oom_context=OomContext(error_message="low on memory"))
SCORER = "SERVE_REPLICA::spaces#Scorer#"
HALF, MINUTE = "1970-01-01T00:00:30+00:00", "1970-01-01T00:01:00+00:00"
PROXY = "SERVE_PROXY_ACTOR-2d20"


def actor(
    name: str, cause: ActorDeathCause | None = None, end_s: int = 0, restarts: int = 0, pid: int = 0
) -> dict[str, Any]:
    return {
        "Name": name,
        "Pid": pid,
        "State": "DEAD" if cause else "ALIVE",
        "NumRestarts": restarts,
        "EndTime": end_s * 1000,
        "DeathCause": cause or ActorDeathCause(),
    }


def scorers(status: str, *ids: str) -> dict[str, ApplicationState]:
    scorer = DeploymentState(status, ids=list(ids))
    return {"spaces": ApplicationState(deployments={"Scorer": scorer})}


def test_an_actor_that_never_ended_is_not_reported():
    found = Restarts().found([actor("SERVE_CONTROLLER_ACTOR"), actor(SCORER + "a"), actor("mine", DIED)], {})
    assert found == {}


def test_each_part_is_counted_with_its_last_reason_and_time():
    table = [
        actor(SCORER + "b", OUT_OF_MEMORY, end_s=60),
        actor(SCORER + "a", DIED, end_s=30),
        actor(PROXY, DIED, end_s=30),
        actor("SERVE_CONTROLLER_ACTOR", restarts=21),
    ]
    assert Restarts().found(table, {}) == {
        "spaces/Scorer": Restarted(2, MEMORY, MINUTE, [HALF, MINUTE]),
        "proxy": Restarted(1, ENDED, HALF, [HALF]),
        "controller": Restarted(21, ENDED, None, []),
    }


@pytest.mark.parametrize(("status", "expected"), [("UNHEALTHY", [(1, UNHEALTHY)]), ("UPDATING", [])])
def test_a_stopped_replica_counts_only_if_its_deployment_was_unhealthy(status, expected):
    restarts = Restarts()
    restarts.found([actor(SCORER + "a")], scorers(status, "a", "b"))
    restarts.found([actor(SCORER + "a", KILLED, 30)], scorers("HEALTHY", "b", "c"))
    for table in ([], [actor(SCORER + "b", KILLED, 90)]):
        found = restarts.found([actor(SCORER + "a", KILLED, 30), *table], scorers("HEALTHY", "c"))
        assert [(one.count, one.last) for one in found.values()] == expected


def test_a_planned_stop_hides_no_crash_before_it():
    table = [actor(SCORER + "a", DIED, end_s=30), actor(SCORER + "b", KILLED, end_s=60)]
    assert Restarts().found(table, {}) == {"spaces/Scorer": Restarted(1, ENDED, HALF, [HALF])}


def test_four_crashes_are_four_restarts_though_deploys_replace_what_started_after_them():
    restarts, table, replicas = Restarts(), [], "abcdefghi"
    for crashed, replacement, deployed in zip(replicas[::2], replicas[1::2], replicas[2::2], strict=False):
        table.append(actor(SCORER + crashed, DIED, 30))
        restarts.found([*table, actor(SCORER + replacement)], scorers("UNHEALTHY", replacement))
        restarts.deploying()
        table.append(actor(SCORER + replacement, KILLED, 60))
        found = restarts.found([*table, actor(SCORER + deployed)], scorers("HEALTHY", deployed))
    assert found["spaces/Scorer"].count == 4


def test_a_deploy_forgets_no_replica_that_did_not_answer_before_it():
    restarts, table = Restarts(), [actor(SCORER + "a", KILLED, 30)]
    restarts.found([actor(SCORER + "a")], scorers("UNHEALTHY", "a", "b"))
    assert restarts.found(table, scorers("HEALTHY", "b"))["spaces/Scorer"].count == 1
    restarts.deploying()
    assert restarts.found(table, scorers("HEALTHY", "c"))["spaces/Scorer"].last == UNHEALTHY


def test_a_proxy_that_serve_stopped_did_not_answer():
    assert Restarts().found([actor(PROXY, KILLED, 30)], {})["proxy"].last == UNHEALTHY


def test_a_restart_in_place_has_the_time_at_which_it_is_noticed():
    restarts, controller = Restarts(), "SERVE_CONTROLLER_ACTOR"
    # Ray has no time for those before.
    table = [actor(controller, restarts=2), actor(PROXY, DIED, 30)]
    assert restarts.found(table, {})["controller"].times == []
    begun = datetime.now(UTC).replace(microsecond=0)
    found = restarts.found([actor(controller, restarts=4), actor(PROXY, restarts=1), *table[1:]], {})
    assert {name: one.count for name, one in found.items()} == {"controller": 4, "proxy": 2}
    times = [datetime.fromisoformat(at) for at in found["controller"].times]
    assert len(times) == 2
    assert all(begun <= at <= datetime.now(UTC) for at in times)
    assert found["controller"].at == found["controller"].times[-1]
    # Seen for the first time, with restarts of unknown times.
    assert found["proxy"].times == [HALF]
    again = restarts.found([actor(controller, restarts=30)], {})["controller"]
    assert (again.count, len(again.times)) == (30, MAX_TIMES)
