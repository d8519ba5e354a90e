from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.support.networks import VERSION, random_encoder, random_network, write_artifact
from training.bench.scorer import bench_scorer, table
from training.network.network import NetworkConfig


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    rng = np.random.default_rng(7)
    network = random_network(rng, random_encoder(rng, 5, 3, 1), NetworkConfig(width=4, n_steps=2))
    return write_artifact(tmp_path_factory.mktemp("bench") / "artifact", network, rng)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_both_backends_are_timed_and_agree(monkeypatch, artifact, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    result = bench_scorer(artifact, sizes=(3, 40), rounds=1)
    assert result["candidates_per_s"].keys() == {"3", "40"}
    for speeds in result["candidates_per_s"].values():
        assert speeds.keys() == {"onnx", "torch"}
        assert min(speeds.values()) > 0
    assert result["max_difference"] <= 1e-5
    assert result["version"] == VERSION
    json.dumps(result)
    assert [line.split()[0] for line in table(result).splitlines()[2:4]] == ["3", "40"]
