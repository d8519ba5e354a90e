"""Say what a deploy changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from serve.operate.host.service_state import Probe, ServiceChange
from serve.operate.run.changes import MAX_CHANGES, added, broken, described

FILE = Path("/srv/cluster.yaml")


def document(**settings: Any) -> dict[str, Any]:
    ingress = {"name": "FeatureFetch", "user_config": settings}
    app = {
        "name": "spaces",
        "import_path": "serve.app:build",
        "args": {"log": "log"},
        "deployments": [ingress],
    }
    return {"applications": [app]}


def test_the_first_fields_are_named_without_their_values():
    settings = {"deadline_ms": 90, "max_batches_in_flight": 3, "stale_after_ms": 9, "log_features": 0.5}
    what = described(FILE, document(), document(**settings))
    assert what.startswith("deployed cluster.yaml: FeatureFetch.user_config.deadline_ms, FeatureFetch.")
    assert what.endswith(", 1 more")
    other = document()
    other["applications"][0]["args"] = {"log": "secret"}
    assert described(FILE, document(), other) == "deployed cluster.yaml: applications.spaces.args.log"
    assert described(FILE, document(), document()) == "deployed cluster.yaml: no field differs"


def test_weights_have_their_values_so_that_the_list_is_the_history_of_what_ranked():
    def weighed(**weights: float) -> dict[str, Any]:
        arm = {"scorer": "current", "share": 1.0, **({"weights": weights} if weights else {})}
        return document(experiment={"name": "e", "salt": "s", "arms": {"b": arm}})

    at = "deployed cluster.yaml: FeatureFetch.user_config.experiment.arms.b.weights"
    assert described(FILE, weighed(stay=0.02), weighed(stay=0.08)) == f"{at}.stay 0.02 → 0.08"
    assert described(FILE, weighed(stay=0.08), weighed(stay=0.02)) == f"{at}.stay 0.08 → 0.02"
    assert described(FILE, weighed(), weighed(stay=1.0)) == f'{at} (not set) → {{"stay": 1.0}}'


def test_weights_of_a_new_arm_are_told_and_no_other_setting():
    def arms(**arms: Any) -> dict[str, Any]:
        return document(experiment={"name": "e", "salt": "s", "arms": arms})

    at = "deployed cluster.yaml: FeatureFetch.user_config.experiment.arms"
    one, weighed = (
        {"scorer": "current", "share": 0.5},
        {"scorer": "current", "share": 0.5, "weights": {"stay": 1}},
    )
    assert described(FILE, arms(a=one), arms(a=one, b=weighed)) == f'{at}.b (not set) → {{"stay": 1}}'
    assert described(FILE, arms(a=one, b=weighed), arms(a=one)) == f'{at}.b {{"stay": 1}} → (not set)'
    assert described(FILE, arms(a=one), arms(a=one, b=one)) == f"{at}.b"
    canary = {**one, "scorer": "canary"}
    assert described(FILE, arms(weights=one), arms(weights=canary)) == f"{at}.weights.scorer"


def test_rules_are_told_in_words_and_whole():
    boost = {"boost": {"where": {"candidate.partner": "yes"}, "by": 0.02}}
    spread = {"spread": {"field": "candidate.host", "most": 1, "within": 4}}

    def ruled(*rules: Any, **more: Any) -> dict[str, Any]:
        arm = {"scorer": "current", "share": 1.0, **({"slate": [*rules]} if rules else {}), **more}
        return document(experiment={"name": "e", "salt": "s", "arms": {"b": arm}})

    at = "deployed cluster.yaml: FeatureFetch.user_config.experiment.arms"
    boosted = "boost by +0.02 where candidate.partner = yes"
    spaced = "spread candidate.host: at most 1 in any 4 places in a row"
    assert described(FILE, ruled(), ruled(boost)) == f"{at}.b.slate (not set) → [{boosted}]"
    assert (
        described(FILE, ruled(boost), ruled(boost, spread))
        == f"{at}.b.slate [{boosted}] → [{boosted}; {spaced}]"
    )
    new = ruled(spread, weights={"stay": 1})
    none = document(experiment={"name": "e", "salt": "s", "arms": {}})
    assert described(FILE, none, new) == f'{at}.b (not set) → {{"stay": 1}}, (not set) → [{spaced}]'


def test_of_several_applications_each_is_named():
    before, after = document(), document(max_batches_in_flight=3)
    for one in (before, after):
        one["applications"].append({**document()["applications"][0], "name": "clips"})
    what = described(FILE, before, after)
    assert (
        what
        == "deployed cluster.yaml: applications.spaces.deployments.FeatureFetch.user_config.max_batches_in_flight"
    )


def test_the_kill_switch_has_words_of_its_own():
    on = document(kill_switch=True)
    assert described(FILE, document(), on) == "kill switch on for spaces"
    assert described(FILE, on, document()) == "kill switch off for spaces"
    assert described(FILE, on, document(kill_switch=False)) == "kill switch off for spaces"


def test_the_oldest_changes_are_dropped():
    changes: list[ServiceChange] = []
    for number in range(MAX_CHANGES + 5):
        changes = added(changes, str(number))
    assert [one.what for one in changes] == [str(number) for number in range(5, MAX_CHANGES + 5)]


def routed(route: str | None = "/", **settings: Any) -> dict[str, Any]:
    found = document(**settings)
    found["applications"][0]["route_prefix"] = route
    return found


def test_a_changed_route_and_a_first_key_are_probed_as_callers_of_before_ask():
    keys = {"api_keys": {"web": {"sha256": "0" * 64}}}
    moved = Probe("route_changed", "spaces", "/livez", 404)
    keyed = Probe("first_key", "spaces", "/v1/model", 401)
    assert broken(document(), routed("/ranking")) == [moved]
    assert broken(routed("/ranking"), document()) == [replace(moved, path="/ranking/livez")]
    assert broken(document(), document(**keys)) == [keyed]
    assert broken(routed(), routed("/ranking", **keys)) == [moved, replace(keyed, path="/ranking/v1/model")]


def test_what_leaves_callers_alone_needs_no_probe():
    one, other = ({"api_keys": {name: {}}} for name in ("web", "app"))
    assert broken(document(), document(max_batches_in_flight=3)) == broken(document(), routed()) == []
    assert broken(document(**one), document(**other)) == broken(document(**one), document()) == []
    foreign = document()
    foreign["applications"][0]["import_path"] = "other:app"
    assert broken(foreign, routed("/ranking")) == []
    assert broken(routed(None), routed(None, **one)) == []
