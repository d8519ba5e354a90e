"""Say what a deploy changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve.operate.run.changes import MAX_CHANGES, added, described

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
    settings = {"deadline_ms": 90, "slots": 3, "stale_after_ms": 9, "log_features": 0.5}
    what = described(FILE, document(), document(**settings), {})
    assert what.startswith("deployed cluster.yaml: FeatureFetch.user_config.deadline_ms, FeatureFetch.")
    assert what.endswith(", 1 more")
    other = document()
    other["applications"][0]["args"] = {"log": "secret"}
    assert described(FILE, document(), other, {}) == "deployed cluster.yaml: applications.spaces.args.log"
    assert described(FILE, document(), document(), {}) == "deployed cluster.yaml: no field differs"


def test_of_several_applications_each_is_named():
    before, after = document(), document(slots=3)
    for one in (before, after):
        one["applications"].append({**document()["applications"][0], "name": "clips"})
    what = described(FILE, before, after, {})
    assert what == "deployed cluster.yaml: applications.spaces.deployments.FeatureFetch.user_config.slots"


def test_the_kill_switch_has_words_of_its_own():
    on = document(kill_switch=True)
    assert described(FILE, document(), on, {}) == "kill switch on for spaces"
    assert described(FILE, on, document(), {}) == "kill switch off for spaces"
    assert described(FILE, on, document(kill_switch=False), {}) == "kill switch off for spaces"


def test_the_oldest_changes_are_dropped():
    changes: list[dict[str, str]] = []
    for number in range(MAX_CHANGES + 5):
        changes = added(changes, str(number))
    assert [one["what"] for one in changes] == [str(number) for number in range(5, MAX_CHANGES + 5)]
