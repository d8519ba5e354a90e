"""Property of rollbacks: only a version that the service accepts becomes current again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from itertools import product
from typing import NamedTuple

from serve.config.settings import UserConfig
from serve.contract.errors import TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.model.compatibility import load_for
from serve.rollout import history
from serve.rollout.active_models import ActiveModels
from serve.rollout.history import HistoryEntry
from serve.rollout.registry import ModelRegistry, NothingBefore
from tests.support.small_surface import TOML
from tests.support.stub_artifact import publish_stub

JOIN = 'outcomes.join = { event = "join", within = "10s" }\n'
VERSIONS = [f"2026010{day}T000000Z-0000" for day in range(1, 7)]


class Trained(NamedTuple):
    """What a model was trained for. `click` is its window in s, of which 0 declares no outcome."""

    state: str
    join: int
    click: int
    is_click_weighed: bool

    @property
    def toml(self):
        lines = JOIN.replace("10s", f"{self.join}s")
        if self.click:
            lines += f'outcomes.click = {{ event = "click", within = "{self.click}s" }}\n'
        if self.click and self.is_click_weighed:
            lines += "weights = { join = 1, click = 1 }\n"
        return TOML.replace(JOIN, lines).replace('half_life = "10s"', f'half_life = "{self.state}"')

    @property
    def features(self):
        return Features(Schema(read_surface(self.toml)))

    def ranks_for(self, service):
        """Return whether a model can rank for a service with another surface."""
        click = self.click if self.is_click_weighed else 0
        is_click_same = click == service.click or not click or not service.click
        is_enough = click > 0 or not (service.click and service.is_click_weighed)
        return (self.state, self.join) == (service.state, service.join) and is_click_same and is_enough


SURFACES = [
    Trained(*one)
    for one in product(("10s", "12s"), (10, 20), (0, 10, 20), (False, True))
    if one[2] or not one[3]
]
DAMAGE = {
    "none": lambda folder: None,
    "file": lambda folder: (folder / "model.onnx").write_bytes(b"other"),
    "surface": lambda folder: (folder / "surface.toml").write_bytes(b"other"),
    "manifest": lambda folder: (folder / "manifest.json").write_bytes(b"{}"),
    "gone": shutil.rmtree,
}


def test_a_rollback_leads_to_the_last_version_that_the_service_accepts(tmp_path):
    found = [rolled_back(tmp_path / str(seed), random.Random(seed)) for seed in range(80)]
    assert 20 < sum(found) < 60, "about half of the rollbacks find a version"


def rolled_back(models, draw):
    """Promote and damage drawn versions, roll back, and return whether there was a version."""
    # Most versions are alike and whole.
    of = SURFACES[:1] * 20 + SURFACES
    trained, damage = draw.choices(of, k=6), draw.choices([*["none"] * 6, *DAMAGE], k=6)
    service = draw.choice([None, *draw.sample(trained, 2)])
    for version, one in zip(VERSIONS, trained, strict=True):
        publish_stub(models, one.toml, version)
    # The numbers of the versions that were current, and of those that were rolled back since.
    order, bad = [], set()
    for number in [*draw.choices([None, *range(6)], k=draw.randint(1, 9)), *draw.sample(range(6), 1)]:
        registry = ModelRegistry(models, read_surface(draw.choice(trained).toml))
        with contextlib.suppress(NothingBefore):
            if number is not None:
                registry.promote(VERSIONS[number])
                bad.discard(number)
            elif order:
                registry.roll_back(None, "slow")
                bad.add(order[-1])
            order += [VERSIONS.index(registry.current)] if registry.current else []
    current = order[-1]
    for number in {*draw.sample(range(6), draw.randint(0, 2))} - {current}:
        bad.add(number)
        canary = HistoryEntry(
            0, "rollback", VERSIONS[number], VERSIONS[current], VERSIONS[current], "service"
        )
        history.append(models, canary)
    for version, one in zip(VERSIONS, damage, strict=True):
        DAMAGE[one](models / version)

    # A command takes the surface of the current version for that of the service.
    needs = service or trained[current]
    is_known = service is not None or damage[current] in ("none", "file")
    is_whole = [n for n in range(6) if trained[n].ranks_for(needs) and damage[n] == "none"]
    earlier = [n for n in order[::-1] if n in is_whole and n not in {current, *bad}]
    expected = VERSIONS[earlier[0]] if earlier and is_known else None
    registry = ModelRegistry(models, read_surface(service.toml) if service else None)
    listed = [one["version"] for one in registry.table() if one["state"] == "previous"]
    assert listed == [expected][: expected is not None]
    found = None
    with contextlib.suppress(NothingBefore):
        found = registry.roll_back(None, "slow")
        load_for(models / found, needs.features)
    assert found == expected
    assert registry.current == (found or VERSIONS[current])

    # A replica that starts now ranks with it too, or with the last one that it accepts.
    replica = ActiveModels(models, needs.features, ready)
    for _ in range(7):
        with contextlib.suppress(TabrankError):
            asyncio.run(replica.follow(UserConfig()))
    accepted = [*earlier, None] if found or current not in is_whole else [current]
    ranks = replica.current.version if replica.current else None
    assert ranks == (None if accepted[0] is None else VERSIONS[accepted[0]])
    return found is not None


async def ready(version):
    """Load a version into the scorer."""
