"""Tests that versions are swapped while batches are scored, on each backend and on a GPU."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest
import torch

from serve.features.matrix import Matrix
from serve.model.scorer_cache import MAX_MODELS, ModelHolder, untimed
from tests.support.networks import random_encoder, random_network, random_rows, trained_scores, write_artifact
from training.network.network import NetworkConfig

OLD, NEW = "20260102T030405Z-0a1b", "20260102T030406Z-0a1b"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder of versions of one and three outcomes, and the scores of rows by each."""
    rng, folder = np.random.default_rng(21), tmp_path_factory.mktemp("models")
    encoder = random_encoder(rng, 5, 2, 1)
    rows, want = random_rows(rng, encoder, 55), {}
    for version, num_outcomes in ((OLD, 1), (NEW, 3)):
        network = random_network(rng, encoder, NetworkConfig(n_steps=3), num_outcomes)
        write_artifact(folder / version, network, rng)
        want[version] = trained_scores(network, *rows)
    return folder, Matrix(*rows).to_bytes(), want


@pytest.mark.parametrize(
    ("backend", "device"),
    [("onnx", "cpu"), ("torch", "cpu"), pytest.param("torch", "cuda", marks=pytest.mark.gpu)],
)
def test_a_version_is_loaded_while_another_scores(models, backend, device, monkeypatch):
    folder, payload, want = models
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    holder = ModelHolder(folder, backend)

    def assert_scores(version):
        found, _ = untimed(holder.score_packed(version, payload), 55)
        np.testing.assert_allclose(found, want[version], rtol=0, atol=1e-5)

    async def swap():
        swapped, num_scored = asyncio.create_task(holder.prepare(NEW)), 0
        while not swapped.done():
            assert_scores(OLD)
            num_scored += 1
            await asyncio.sleep(0)
        await swapped
        return num_scored

    holder.load(OLD)
    # The first batch is scored before the load; one that blocked the loop would leave only that.
    assert asyncio.run(swap()) > 1
    for version in (NEW, OLD, NEW):
        assert holder.holds(version)
        assert_scores(version)
    if device == "cuda":
        assert torch.cuda.memory_allocated() > 0


@pytest.mark.gpu
def test_a_version_that_makes_room_frees_its_memory_on_the_gpu(models, tmp_path):
    folder, payload, _ = models
    holder, used = ModelHolder(tmp_path, "torch"), []
    for number in range(2 * MAX_MODELS):
        version = f"20260102T03{number:02}00Z-0a1b"
        shutil.copytree(folder / NEW, tmp_path / version)
        holder.score_packed(version, payload)
        used.append(torch.cuda.memory_allocated())
    assert used[0] > 0
    assert used[-1] <= 1.1 * used[MAX_MODELS]
