from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.model.artifact import CURRENT, FILES, current, point, save
from tests.support.evaluation_rows import dataset
from tests.support.networks import artifact_files, random_network
from tests.support.small_surface import TOML
from training.__main__ import app
from training.data.encoding import fit_encoder
from training.examination.estimate import MIN_VIEWERS
from training.examination.examination import IGNORED, Examination
from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.commands import not_published
from training.search.search import configuration, followed, reasons, take_place
from training.search.winner import is_enough, predicted, unseen

EQUAL = {"ndcg@10": 0.0, "se": 0.004, "logloss": 0.0, "logloss_se": 0.001}
BETTER = EQUAL | {"ndcg@10": 0.02, "gate": {"by": "ndcg@10", "beats": True}}
WORSE = EQUAL | {"ndcg@10": -0.02, "gate": {"by": "ndcg@10", "beats": False}}
OLD, CHOSEN, NEW = ("20260102T030405Z-0a1b", "20260102T040405Z-0a1b", "20260103T030405Z-0a1b")


def artifact(out: Path, version: str, surface: Surface) -> Path:
    files = dict.fromkeys(FILES, b"") | {"surface.toml": surface.text.encode()}
    about = {"version": version, "surface": surface.name, "surface_fingerprint": surface.fingerprint}
    about |= {"state_fingerprint": Schema(surface).fingerprint}
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


def test_a_winner_takes_the_place_of_what_it_follows(models, tmp_path, surface, capsys):
    winner = artifact(tmp_path / "out", NEW, surface)
    assert take_place(winner, models, OLD)
    assert current(models) == NEW
    # A second call changes nothing.
    assert take_place(winner, models, OLD)
    assert capsys.readouterr().err == ""


def test_what_was_made_current_while_the_search_ran_stays_so(models, tmp_path, surface, capsys):
    winner = artifact(tmp_path / "out", NEW, surface)
    point(models, CURRENT, CHOSEN, f"{OLD}\n".encode())
    assert not take_place(winner, models, OLD)
    assert current(models) == CHOSEN
    assert (models / NEW).exists()
    assert f"{CHOSEN} became current meanwhile" in capsys.readouterr().err


def test_a_current_model_that_cannot_be_loaded_is_a_reason_not_to_replace_it(tmp_path, surface):
    data, rng = dataset(surface), np.random.default_rng(0)
    encoder = fit_encoder(surface, data.columns, data.matrix, {})
    files, about = artifact_files(random_network(rng, encoder, NetworkConfig(width=4)), rng)
    about |= {"version": OLD, "state_fingerprint": Schema(surface).fingerprint}
    save(tmp_path / OLD, files | {"surface.toml": TOML.encode()}, about)
    last, reasons = followed(tmp_path, OLD, Schema(surface))
    assert (last.version, reasons) == (OLD, [])
    # Another removal of position bias leaves the columns as they are.
    other = Schema(replace(surface, position_bias="ignored"))
    assert followed(tmp_path, OLD, other)[0].version == OLD
    longer = read_surface(surface.text.replace('within = "10s"', 'within = "20s"'))
    last, (reason,) = followed(tmp_path, OLD, Schema(longer))
    assert last is None
    assert "it predicts join as join within 10s, and in the surface tiny join is join within 20s" in reason
    fewer = {name: kind for name, kind in surface.features.items() if name != "topic_affinity"}
    last, (reason,) = followed(tmp_path, OLD, Schema(replace(surface, features=fewer)))
    assert last is None
    assert f"the current model {OLD} cannot rank with this surface, so nothing is compared" in reason
    assert "run `python -m training publish` by hand" in reason


def test_only_rows_after_all_that_the_current_model_has_seen_compare_it(surface):
    data = dataset(surface)

    def newer(**about):
        return unseen(data, SimpleNamespace(manifest=about))

    half_ms = int(data.ts_ms[len(data) // 2])
    rows = newer(seen_until_ms=half_ms)
    assert (rows.ts_ms > half_ms).all()
    assert len(rows) == (data.ts_ms > half_ms).sum() > 0
    assert is_enough(rows)
    none = newer(seen_until_ms=int(data.ts_ms[-1]))
    assert len(none) == 0
    assert not is_enough(none)
    few = data.take(np.flatnonzero(data.viewer < MIN_VIEWERS - 1))
    assert len(few) > 100
    assert not is_enough(few)
    # Enough viewers have a positive, but too few have one beside another candidate.
    single = np.flatnonzero((data.label > 0) & (data.viewer >= MIN_VIEWERS - 1))
    single = single[np.unique(data.viewer[single], return_index=True)[1]][:20]
    rows = np.append(np.flatnonzero(data.viewer < MIN_VIEWERS - 1), single)
    mixed = data.take(rows)
    mixed.slate[-len(single) :] = -single
    assert len(np.unique(mixed.viewer[mixed.label > 0])) >= MIN_VIEWERS
    assert not is_enough(mixed)


def test_a_winner_that_is_not_published_leaves_what_is_current(models, tmp_path):
    assert not_published(tmp_path / "out", models) == "not published: the current model stays"
    text = not_published(tmp_path / "my out", tmp_path / "none")
    assert "the service ranks by popularity" in text
    command = shlex.split(text.partition("unless you run ")[2])
    assert command[3:] == ["publish", "--model", f"{tmp_path}/my out", "--models", f"{tmp_path}/none"]


NIGHTS = [
    ("models", {"passed": True}, 0),
    ("models", {}, 3),
    ("models", {"suspects": ["dwell"]}, 1),
    ("none", {}, 1),
]


@pytest.mark.parametrize(("folder", "night", "code"), NIGHTS)
def test_a_refresh_tells_a_normal_night_from_a_failure_and_works_beside_the_models(
    folder, night, code, models, monkeypatch
):
    found = {"headline": "", "verdict": "", "leaderboard": [], "reasons": [], "test_looks": 1}
    found |= {"published": False, "artifact": "", "passed": False, "suspects": []} | night
    outs = []
    monkeypatch.setattr("training.search.search.search", lambda _, log, out, __: outs.append(out) or found)
    options = ["--surface", "spaces", "--log", "log", "--models", str(models.parent / folder)]
    assert CliRunner().invoke(app, ["refresh", *options]).exit_code == code
    assert outs == [models.parent / f"{folder}.refresh"]


def test_every_reason_is_named():
    assert reasons({"paired": {"model-popular": BETTER}}) == []
    bound = {"measure": "ndcg@10", "worse": 0.028, "allowed": 0.004, "holds": False}
    worse = WORSE | {"rows": 900, "margin": 0.01, "bounds": [bound]}
    better = worse | {"bounds": [bound | {"holds": True}]}
    assert reasons({"paired": {"model-popular": BETTER, "model-current": better}}) == []
    (behind,) = reasons({"paired": {"model-popular": BETTER, "model-current": worse}})
    assert "on 900 rows that neither has seen" in behind
    assert "NDCG@10 up to 0.0280 worse, 0.0040 allowed" in behind
    incumbent = {"version": OLD, "unseen_rows": 0, "test_rows": 4_000}
    (blind,) = reasons({"paired": {"model-popular": BETTER}, "incumbent": incumbent})
    assert blind.startswith(f"only 0 of 4,000 test rows are newer than the current model {OLD} has seen")
    assert "wait for newer rows, or run `python -m training publish` by hand" in blind
    (lost,) = reasons({"paired": {"model-popular": WORSE}})
    assert lost.startswith("the model orders worse than popular: NDCG@10 -0.0200")
    (equal,) = reasons({"paired": {"model-popular": WORSE | EQUAL}})
    assert equal.startswith("the model does not beat popular by two standard errors: NDCG@10 +0.0000")
    (ruled,) = reasons({"paired": {"model-popular": BETTER, "model-baseline": WORSE}})
    assert ruled.startswith("the model orders worse than the baseline: NDCG@10 -0.0200")
    unclear = EQUAL | {"ndcg@10": None, "gate": WORSE["gate"] | {"beats": None}}
    (unknown,) = reasons({"paired": {"model-popular": unclear}})
    assert unknown.startswith("these rows do not show whether the model beats popular")


def manifest(fit: dict[str, object], network: dict[str, object]) -> dict[str, object]:
    made = {key: value for key, value in asdict(FitConfig(epochs=9, seed=3)).items() if key != "network"}
    return {"version": OLD, "fit": made | fit, "network": asdict(NetworkConfig(width=24)) | network}


def test_a_search_starts_from_the_configuration_of_a_model(capsys):
    (config,) = configuration(manifest({}, {}))
    assert (config.epochs, config.network.width) == (9, 24)
    assert capsys.readouterr().err == ""


def test_a_configuration_that_this_release_refuses_is_no_start(capsys):
    for given, message in (({"epochs": 0}, "epochs 0"), ({"colour": "red"}, "'colour'")):
        assert configuration(manifest(given, {})) == []
        printed = capsys.readouterr().err
        assert OLD in printed
        assert message in printed


def weighed(*outcomes: str) -> Surface:
    """Return the small surface with these outcomes in the place of its own."""
    rest = [line for line in TOML.splitlines() if not line.startswith("outcomes")]
    return read_surface("\n".join([*rest[:2], *outcomes, *rest[2:]]), "surface.toml")


def test_a_current_model_without_an_outcome_of_the_surface_is_not_compared(tmp_path, surface):
    data, rng = dataset(surface), np.random.default_rng(0)
    encoder = fit_encoder(surface, data.columns, data.matrix, {})
    files, about = artifact_files(random_network(rng, encoder, NetworkConfig(width=4)), rng)
    schema = Schema(weighed('outcomes.tap = { event = "click", within = "10s" }'))
    about |= {"version": OLD, "state_fingerprint": schema.fingerprint}
    save(tmp_path / OLD, files | {"surface.toml": TOML.encode()}, about)
    last, (reason,) = followed(tmp_path, OLD, schema)
    assert last is None
    assert "it predicts join, and the surface weighs tap" in reason
    # One that lacks only some is compared by those that both predict.
    both = weighed(
        'outcomes.tap = { event = "click", within = "10s" }',
        'outcomes.join = { event = "join", within = "10s" }',
        "weights = { tap = 0.1, join = 1 }",
    )
    assert Schema(both).fingerprint == schema.fingerprint
    last, reasons = followed(tmp_path, OLD, Schema(both))
    assert (list(last.outcomes), reasons) == (["join"], [])


def test_predictions_of_the_current_model_are_told_by_the_outcomes_of_the_surface(monkeypatch):
    surface = weighed(
        'outcomes.join = { event = "join", within = "10s" }',
        'outcomes.stay = { event = "join", until = "leave", cap = "30m", within = "20s" }',
        'outcomes.tap = { event = "click", within = "10s" }',
        "weights = { join = 1, stay = 0.02, tap = 0.1 }",
    )
    theirs = np.array([[0.1, 0.2, 0.9], [0.3, 0.4, 0.9]], np.float32)
    monkeypatch.setattr("training.search.winner.score", lambda path, matrix: theirs)
    learned = Examination("learned", [1.0, 0.5], [0.0, 0.1], 200)
    examined = {"stay": learned, "join": IGNORED, "gone": IGNORED}
    last = SimpleNamespace(
        path=Path("m"),
        outcomes={"stay": 30.0, "join": 1.0, "gone": 1.0},
        manifest={"outcomes": {name: {"examination": asdict(one)} for name, one in examined.items()}},
    )
    shares, examinations = predicted(last, None, surface)
    np.testing.assert_array_equal(shares[:, :2], theirs[:, [1, 0]])
    assert np.isnan(shares[:, 2]).all()
    assert examinations == [IGNORED, learned, IGNORED]
