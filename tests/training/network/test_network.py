from __future__ import annotations

import numpy as np
import pytest
import torch

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder, NumericColumn, SingleColumn
from tests.support.networks import (
    geometric_logits,
    inputs,
    random_config,
    random_encoder,
    random_network,
    random_rows,
    reference,
)
from tests.support.pytorch_tabnet_networks import untrained_module
from training.network.network import Inputs, Network, NetworkConfig


@pytest.mark.parametrize("num_outcomes", [1, 3])
@pytest.mark.parametrize("columns", [(4, 0, 1), (0, 3, 0), (5, 2, 2)])
def test_the_logits_are_those_of_pytorch_tabnet_with_its_own_embedder(
    columns: tuple[int, int, int], num_outcomes: int
) -> None:
    rng = np.random.default_rng(0)
    encoder = random_encoder(rng, *columns)
    network = random_network(rng, encoder, NetworkConfig(), num_outcomes)
    x = inputs(network, *random_rows(rng, encoder, 30))
    assert x.shape == (30, len(encoder.input_names))
    logit = network.logit(x)
    assert logit.shape == (30, num_outcomes)
    torch.testing.assert_close(logit, reference(network)(x)[0], rtol=0, atol=1e-5)


def test_numbers_are_transformed_standardised_clipped_and_marked_missing() -> None:
    encoder = Encoder(
        (NumericColumn("a", "log1p", 1.0, 2.0, indicator=True), NumericColumn("b", mean=10.0, std=5.0)),
        (SingleColumn("s", ("x",)),),
    )
    numeric = torch.tensor(
        [[np.e - 1, 15.0], [1 - np.e, 0.0], [np.nan, np.nan], [np.inf, -np.inf]], dtype=torch.float32
    )
    x = Network(encoder, NetworkConfig()).inputs(
        numeric, torch.zeros(4, 0), torch.tensor([[0], [1], [2], [0]])
    )
    want = [[0.0, 1.0, 0.0, 0.0], [-1.0, -2.0, 0.0, 1.0], [0.0, 0.0, 1.0, 2.0], [8.0, -8.0, 0.0, 0.0]]
    torch.testing.assert_close(x, torch.tensor(want), rtol=0, atol=1e-6)


def test_sparsity_is_the_entropy_of_the_masks() -> None:
    encoder = Encoder(tuple(NumericColumn(f"n{i}") for i in range(8)))
    network = Network(encoder, NetworkConfig(n_steps=2))
    attention = network.tabnet.tabnet.encoder.att_transformers
    x = torch.randn(20, 8)
    with torch.no_grad():
        for step in attention:
            step.fc.weight.zero_()
        assert network.tabnet(x)[1].item() == pytest.approx(np.log(8), abs=1e-5)
        for step in attention:
            step.bn.bn.bias[3] = 100.0
        assert network.tabnet(x)[1].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
def test_every_parameter_that_learns_gets_a_gradient(mask_type: str) -> None:
    rng = np.random.default_rng(1)
    encoder = random_encoder(rng, 3, 2, 1)
    network = Network(encoder, NetworkConfig(mask_type=mask_type))
    logit, sparsity = network.tabnet(inputs(network, *random_rows(rng, encoder, 64)))
    (logit.square().mean() + sparsity).backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_state_is_the_learned_one_alone() -> None:
    network = Network(random_encoder(np.random.default_rng(2), 3, 2, 1), NetworkConfig())
    assert {name.split(".")[0] for name in network.state_dict()} == {"tabnet"}


@pytest.mark.parametrize("seed", range(8))
def test_names_shapes_and_initial_weights_are_those_of_pytorch_tabnet(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = Network(random_encoder(rng, 3, seed % 3, 1), random_config(rng, "entmax"))
    torch.manual_seed(seed)
    ours = Network(network.encoder, network.config).tabnet
    torch.manual_seed(seed)
    theirs = untrained_module(network.encoder, network.config)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=0)
    # An optimiser's state belongs to the parameters by their order.
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_a_state_of_pytorch_tabnet_can_be_loaded() -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, random_encoder(rng, 3, 2, 1), NetworkConfig())
    x = inputs(network, *random_rows(rng, network.encoder, 30))
    other = Network(network.encoder, network.config).eval()
    other.tabnet.load_state_dict(reference(network).state_dict())
    torch.testing.assert_close(other.logit(x), network.logit(x), rtol=0, atol=0)


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
def test_scoring_finds_masks_that_need_many_passes(mask_type: str) -> None:
    logits = geometric_logits(20)
    encoder = Encoder(tuple(NumericColumn(f"n{i}") for i in range(logits.shape[1])))
    network = random_network(np.random.default_rng(0), encoder, NetworkConfig(mask_type=mask_type))
    for attention in network.tabnet.tabnet.encoder.att_transformers:
        with torch.no_grad():
            attention.fc.weight.zero_()
            attention.bn.bn.running_mean.zero_()
            attention.bn.bn.bias.copy_(torch.from_numpy(logits[0]) * (2 if mask_type == "entmax" else 1))
    x = torch.randn(5, len(encoder.numeric))
    with torch.no_grad():
        steps = list(network.tabnet.tabnet.steps(network.tabnet.embedder(x)))
        # The masks, each weighted by the decision of its step.
        explained = sum(mask * decision.sum(0) for mask, decision in steps).T
    torch.testing.assert_close(explained, reference(network).forward_masks(x)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_type": "softmax"}, "mask_type: unknown value 'softmax'"),
        ({"width": 0}, "width: 0 must be from 1"),
        ({"n_steps": 0}, "n_steps: 0 must be from 1"),
        ({"virtual_batch_size": 1}, "virtual_batch_size: 1 must be from 2"),
        ({"n_shared": 0, "n_independent": 0}, "are both 0"),
        ({"n_shared": -1}, "n_shared: -1 must be from 0"),
        ({"gamma": 0.9}, r"gamma: 0\.9 must be from 1"),
        ({"gamma": float("nan")}, "gamma: nan must be"),
    ],
)
def test_an_invalid_network_is_refused_by_field_and_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TabrankError, match=message):
        NetworkConfig(**fields)


def test_a_network_without_columns_is_refused() -> None:
    with pytest.raises(TabrankError, match="no columns"):
        Network(Encoder(()), NetworkConfig())


def test_rows_that_cannot_be_written_name_their_folder_and_others(tmp_path):
    (tmp_path / "full").touch()
    rows = Inputs(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(TabrankError, match=f"{tmp_path}/full/rows: .* cannot be written: .*TMPDIR"):
        rows.save(tmp_path / "full" / "rows", "train")
