from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.contract.errors import TabrankError
from serve.model.artifact import CURRENT, FILES, point, publish, save
from tests.support.networks import artifact_files, random_config, random_encoder, random_network
from tests.support.small_surface import TOML
from training.__main__ import app
from training.fit.publish import check_surface

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


@pytest.mark.parametrize(("known", "told"), [({"verdict": "It is good."}, "It is good. See"), ({}, "See")])
def test_the_verdict_is_printed_where_the_release_that_made_the_model_wrote_one(tmp_path, known, told):
    rng = np.random.default_rng(0)
    network = random_network(rng, random_encoder(rng, 2, 1, 0), random_config(rng, "entmax"))
    files, manifest = artifact_files(network, rng)
    made = tmp_path / "made"
    save(made, files | {"surface.toml": TOML.encode()}, manifest | {"surface": "tiny"} | known)
    arguments = ["publish", "--model", str(made), "--models", str(tmp_path / "models"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"version": VERSION, "current": True}
    assert done.stderr == f"{told} {made / 'report.html'}.\n"
