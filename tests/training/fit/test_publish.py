from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.contract.errors import TabrankError
from serve.model.artifact import CURRENT, FILES, current, point, publish, save
from tests.support.networks import artifact_files, random_config, random_encoder, random_network
from tests.support.small_surface import TOML
from training.__main__ import app
from training.fit.publish import check_surface
from training.fit.publish import publish as publish_and_promote

VERSION = "20260102T030405Z-0a1b"


def test_a_folder_of_models_is_of_one_surface(tmp_path):
    models = tmp_path / "models"
    check_surface(models, "spaces")
    save(tmp_path / "made", dict.fromkeys(FILES, b""), {"version": VERSION, "surface": "spaces"})
    point(models, CURRENT, publish(tmp_path / "made", models), None)
    check_surface(models, "spaces")
    with pytest.raises(
        TabrankError,
        match=r"models: its current model is of the surface 'spaces', not 'shop'.*separate folder",
    ):
        check_surface(models, "shop")
    # Only another model can take the place of a damaged one.
    (models / VERSION / "manifest.json").write_bytes(b"{}")
    check_surface(models, "spaces")


def test_a_model_whose_outcome_means_something_else_is_published_with_a_word(tmp_path, capsys):
    rng, later = np.random.default_rng(0), "20260103T030405Z-0a1b"
    network = random_network(rng, random_encoder(rng, 2, 1, 0), random_config(rng, "entmax"))
    files, manifest = artifact_files(network, rng)
    for version, window in ((VERSION, "10s"), (later, "20s")):
        toml = TOML.replace('within = "10s"', f'within = "{window}"')
        save(tmp_path / version, files | {"surface.toml": toml.encode()}, manifest | {"version": version})
        publish_and_promote(tmp_path / version, tmp_path / "models")
    told = "it predicts join as join within 20s, and in the surface tiny join is join within 10s; replicas"
    assert told in capsys.readouterr().err
    assert current(tmp_path / "models") == later


def test_the_verdict_of_the_model_is_printed(tmp_path):
    rng = np.random.default_rng(0)
    network = random_network(rng, random_encoder(rng, 2, 1, 0), random_config(rng, "entmax"))
    files, manifest = artifact_files(network, rng)
    made = tmp_path / "made"
    save(
        made,
        files | {"surface.toml": TOML.encode()},
        manifest | {"surface": "tiny", "verdict": "It is good."},
    )
    arguments = ["publish", "--model", str(made), "--models", str(tmp_path / "models")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'models' / VERSION} is current\n"
    assert done.stderr == f"It is good. See {made / 'report.html'}.\n"
