from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from serve.features.surface import Surface, read_surface
from serve.model.artifact import CURRENT, FILES, current, point, save
from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.commands import not_published
from training.search.search import configuration, followed, reasons, take_place

BETTER = {"ndcg@10": 0.02, "se": 0.004, "gate": {"by": "ndcg@10", "beats": True}}
WORSE = {"ndcg@10": -0.02, "se": 0.004, "gate": {"by": "ndcg@10", "beats": False}}
OLD, CHOSEN, NEW = ("20260102T030405Z-0a1b", "20260102T040405Z-0a1b", "20260103T030405Z-0a1b")


def artifact(out: Path, version: str, surface: Surface) -> Path:
    files = dict.fromkeys(FILES, b"") | {"surface.toml": surface.text.encode()}
    about = {"version": version, "surface": surface.name, "surface_fingerprint": surface.fingerprint}
    save(out, files, about)
    return out


@pytest.fixture
def models(tmp_path, surface, monkeypatch) -> Path:
    """Published models, `OLD` being current; they hold no network, and none is scored."""
    monkeypatch.setattr("training.fit.publish.load_scorer", lambda folder, backend: None)
    for version in (OLD, CHOSEN):
        artifact(tmp_path / "models" / version, version, surface)
    point(tmp_path / "models", CURRENT, OLD)
    return tmp_path / "models"


def test_a_winner_takes_the_place_of_what_it_follows(models, tmp_path, surface):
    winner, messages = artifact(tmp_path / "out", NEW, surface), []
    assert take_place(winner, models, OLD, messages.append)
    assert current(models) == NEW
    # A second call changes nothing.
    assert take_place(winner, models, OLD, messages.append)
    assert messages == []


def test_what_was_made_current_while_the_search_ran_stays_so(models, tmp_path, surface):
    winner, messages = artifact(tmp_path / "out", NEW, surface), []
    point(models, CURRENT, CHOSEN)
    assert not take_place(winner, models, OLD, messages.append)
    assert current(models) == CHOSEN
    assert (models / NEW).exists()
    assert f"{CHOSEN} was made current during the search" in messages[0]


def test_a_model_of_another_surface_is_not_followed_and_the_reason_printed(models, surface):
    messages = []
    assert followed(models, OLD, surface, messages.append).version == OLD
    assert messages == []
    other = read_surface(surface.text, "tiny.toml")
    other = replace(other, position_bias="examined")
    assert followed(models, OLD, other, messages.append) is None
    assert "differs in position_bias: it is not compared" in messages[0]


def test_a_winner_that_is_not_published_leaves_what_is_current(models, tmp_path):
    assert not_published(tmp_path / "out", models) == "not published: the current model stays"
    text = not_published(tmp_path / "my out", tmp_path / "none")
    assert "the service ranks by popularity" in text
    command = shlex.split(text.partition("unless you run ")[2])
    assert command[3:] == ["publish", "--model", f"{tmp_path}/my out", "--models", f"{tmp_path}/none"]


def test_every_reason_is_named():
    gate, none = BETTER["gate"], WORSE["gate"] | {"beats": None}
    assert reasons({"paired": {"model-popular": BETTER}, "gate": gate}) == []
    assert reasons({"paired": {"model-popular": BETTER, "model-current": BETTER}, "gate": gate}) == []
    (behind,) = reasons({"paired": {"model-popular": BETTER, "model-current": WORSE}, "gate": gate})
    assert behind.startswith("the current model beats it: NDCG@10 -0.0200")
    (lost,) = reasons({"paired": {"model-popular": WORSE}, "gate": WORSE["gate"]})
    assert lost.startswith("it does not beat popular by two standard errors: NDCG@10 -0.0200")
    (unknown,) = reasons({"paired": {"model-popular": BETTER}, "gate": none})
    assert "cannot say" in unknown


def manifest(fit: dict[str, object], network: dict[str, object]) -> dict[str, object]:
    made = {key: value for key, value in asdict(FitConfig(epochs=9, seed=3)).items() if key != "network"}
    return {"version": OLD, "fit": made | fit, "network": asdict(NetworkConfig(width=24)) | network}


def test_a_search_starts_from_what_it_knows_of_a_models_configuration():
    messages = []
    (config,) = configuration(manifest({"colour": "red"}, {"depth": 3}), FitConfig(seed=5), messages.append)
    assert (config.epochs, config.seed, config.network.width) == (9, 5, 24)
    assert messages == []


def test_a_configuration_that_this_release_refuses_is_no_start():
    messages = []
    assert configuration(manifest({"epochs": 0}, {}), FitConfig(), messages.append) == []
    assert OLD in messages[0]
    assert "epochs 0" in messages[0]
