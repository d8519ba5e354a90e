"""Service of the simulated world on its own port, without Ray, and a model for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import numpy as np
from typer.testing import CliRunner

from serve.config.settings import AppArgs, Arm, Experiment, UserConfig
from serve.features.rows import Schema
from serve.features.surface import load_surface, read_surface
from serve.ingest.backfill import load
from serve.log.reader import read_log
from serve.model.artifact import CURRENT, point, publish, save
from serve.model.scorer_cache import ModelHolder
from tests.support.live_service import Live
from tests.support.networks import artifact_files, random_network
from training.__main__ import app
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.evaluation.drift import STATISTICS, statistics
from training.examination.examination import IGNORED
from training.network.network import NetworkConfig

SURFACE = load_surface("spaces")
# The same surface, which weighs three outcomes.
THREE = read_surface(SURFACE.text.replace("[weights]\n", "[weights]\nstay = 0.02\nhide = -5\n"))


def write_model(folder, log_folder, examination=IGNORED, surface=SURFACE, **about):
    log = read_log(log_folder, surface)
    data = build(Schema(surface), log)
    rng = np.random.default_rng(0)
    encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, log))
    network = random_network(rng, encoder, NetworkConfig(width=4, n_steps=1), len(surface.predicted))
    files, manifest = artifact_files(network, rng)
    for outcome in manifest["outcomes"].values():
        outcome["examination"] = asdict(examination)
    kept = {STATISTICS: statistics(data.columns, data.matrix, np.linspace(0.0, 1.0, len(data)))}
    files |= {"surface.toml": surface.text.encode(), "evaluation.json": json.dumps(kept).encode()}
    about = {"surface": surface.name, "surface_fingerprint": surface.fingerprint} | about
    save(folder, files, manifest | about)


class Service(Live):
    """Service of the simulated world on its own port.

    It fills its store from the log `a`, and appends its own records to the same log.
    """

    def __init__(self, home, folder, *, clock="event", surface=SURFACE, model="model", **config):
        super().__init__(folder)
        shutil.copytree(home / "a", folder / "a")
        self.surface = surface
        load(surface, folder / "a", "lmdb:store", folder)
        point(folder / "models", CURRENT, publish(home / model, folder / "models"))
        (folder / "spaces.toml").write_text(surface.text)
        self.args = AppArgs("spaces.toml", "lmdb:store", "models", "a", clock=clock)
        experiment = Experiment("launch", "s", (Arm("model", "current", 1.0),))
        self.config = UserConfig(**{"experiment": experiment, "log_features": 1.0} | config)
        self.models = ModelHolder(folder / "models", "onnx")

    async def score(self, version, payload):
        return self.models.score_packed(version, payload)


def command(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if code < 2 else done.stderr.splitlines()[-1]
