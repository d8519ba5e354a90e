from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from networks import random_encoder, random_network, write_artifact

from serve.contract.errors import TabrankError
from training.bench.contenders import references
from training.bench.scorer import bench_scorer, table
from training.network.network import NetworkConfig

CONTENDERS = {"predict_proba", "eager", "exported", "ours_torch", "ours"}


@pytest.fixture(
    scope="module",
    params=[
        ("entmax", "cpu"),
        ("sparsemax", "cpu"),
        pytest.param(("entmax", "cuda"), marks=pytest.mark.gpu),
    ],
)
def result(request, tmp_path_factory):
    mask_type, device = request.param
    rng = np.random.default_rng(7)
    encoder = random_encoder(rng, 5, 3, 1)
    network = random_network(rng, encoder, NetworkConfig(width=4, n_steps=2, mask_type=mask_type))
    artifact = write_artifact(tmp_path_factory.mktemp("bench") / "artifact", network, rng)
    return bench_scorer(artifact, device=device, sizes=(3, 40), rounds=1)


def test_every_way_of_scoring_an_artifact_is_timed_and_agrees_with_ours(result):
    assert result["rows"].keys() == {"3", "40"}
    for speeds in result["rows"].values():
        assert speeds.keys() == CONTENDERS
        assert min(speeds.values()) > 0
    assert result["max_difference"].keys() == CONTENDERS
    assert max(result["max_difference"].values()) <= 1e-5
    speeds = result["rows"]["40"]
    ours = speeds["ours" if result["device"] == "cpu" else "ours_torch"]
    assert result["ratio_vs_predict_proba"] == ours / speeds["predict_proba"]
    assert result["network"]["n_steps"] == 2
    assert result["features"] == 9
    json.dumps(result)


def test_the_table_has_a_line_for_each_contender(result):
    text = table(result)
    for name in CONTENDERS:
        assert f"  {name} " in text


def test_reference_networks_have_forty_features_and_differ_between_rows(tmp_path):
    for folder in references(tmp_path).values():
        result = bench_scorer(folder, sizes=(8,), rounds=1)
        assert result["features"] == 40
        assert max(result["max_difference"].values()) <= 1e-5


@pytest.mark.parametrize(
    ("device", "remedy"),
    [
        (
            "cuda",
            "--device cuda: torch finds no CUDA device; install a GPU's driver and a CUDA build of torch",
        ),
        ("gpu", "--device gpu: must be cpu or cuda"),
    ],
)
def test_a_device_that_torch_lacks_is_refused(monkeypatch, device, remedy):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TabrankError, match=remedy):
        bench_scorer(device=device)
