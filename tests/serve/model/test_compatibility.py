"""Compatibility of an artifact with a surface whose outcomes have changed since."""

from __future__ import annotations

import pytest

from serve.contract.errors import ArtifactRefused, TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.model.artifact import FILES, load, save
from serve.model.compatibility import load_for
from tests.support.small_surface import THREE, TOML
from tests.support.stub_artifact import MODEL, publish_stub


def load_in(folder, trained, served):
    publish_stub(folder, trained)
    return load_for(folder / MODEL, Features(Schema(read_surface(served))))


@pytest.mark.parametrize(
    ("old", "new", "was", "now"),
    [
        ('within = "10s"', 'within = "20s"', "join as join within 10s", "join is join within 20s"),
        (
            '{ event = "join", w',
            '{ event = "click", w',
            "join as join within 10s",
            "join is click within 10s",
        ),
        (
            'until = "leave"',
            'until = "click"',
            "stay as minutes from join to leave within 15s, at most 1",
            "stay is minutes from join to click within 15s, at most 1",
        ),
        ('cap = "1m"', 'cap = "2m"', "to leave within 15s, at most 1", "to leave within 15s, at most 2"),
        (
            'sum = "value", cap = 5,',
            "",
            "spend as values of click within 25s, at most 5",
            "spend is click within",
        ),
    ],
)
def test_an_outcome_of_another_meaning_is_refused_with_both_meanings(tmp_path, old, new, was, now):
    assert THREE.count(old) == 1
    with pytest.raises(TabrankError, match=f"it predicts .*{was}, and in the surface tiny .*{now}") as error:
        load_in(tmp_path, THREE, THREE.replace(old, new))
    assert not isinstance(error.value, ArtifactRefused), "the version itself is not at fault"
    assert str(error.value).endswith("; fit a model with this surface and publish it")


def test_units_and_what_is_not_predicted_may_change(tmp_path):
    named = THREE.replace("cap = 5", 'cap = 5, unit = "€"')
    assert list(load_in(tmp_path / "unit", THREE, named).outcomes) == ["join", "stay", "spend"]
    measured = THREE.replace("weights = { join = 1, stay = 0.1, spend = 2 }", "weights = { join = 1 }")
    changed = measured.replace('cap = "1m"', 'cap = "2m"')
    assert list(load_in(tmp_path / "measured", measured, changed).outcomes) == ["join"]
    # An arm may weigh what the artifact still predicts, so its name must mean the same.
    with pytest.raises(TabrankError, match="it predicts stay as"):
        load_in(tmp_path / "predicted", THREE, changed)


def test_an_artifact_without_its_surface_is_broken(tmp_path):
    publish_stub(tmp_path, TOML)
    made = load(tmp_path / MODEL)
    contents = {name: made.read(name) for name in FILES} | {"surface.toml": b"\xff"}
    manifest = {key: made.manifest[key] for key in ("version", "state_fingerprint", "outcomes")}
    save(tmp_path / "other", contents, manifest)
    with pytest.raises(ArtifactRefused, match=r"other: surface\.toml: not valid TOML: .*; fit again"):
        load_for(tmp_path / "other", Features(Schema(read_surface(TOML))))
