from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import inputs, random_encoder, random_network, random_rows

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder, NumericColumn, SingleColumn
from training.network.network import Network, NetworkConfig


@pytest.mark.parametrize("columns", [(4, 0, 1), (0, 3, 0), (5, 2, 2)])
def test_the_logit_is_that_of_pytorch_tabnet_with_its_own_embedder(columns: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    encoder = random_encoder(rng, *columns)
    network = random_network(rng, encoder, NetworkConfig())
    x = inputs(network, *random_rows(rng, encoder, 30))
    assert x.shape == (30, len(encoder.input_names))
    logit, _ = network(x)
    torch.testing.assert_close(logit, network.tabnet(x)[0][:, 0], rtol=0, atol=0)


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
    network = Network(encoder, NetworkConfig(n_steps=2)).eval()
    attention = network.tabnet.tabnet.encoder.att_transformers
    x = torch.randn(20, 8)
    with torch.no_grad():
        for step in attention:
            step.fc.weight.zero_()
        assert network(x)[1].item() == pytest.approx(np.log(8), abs=1e-5)
        for step in attention:
            step.bn.bn.bias[3] = 100.0
        assert network(x)[1].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
def test_every_parameter_that_learns_gets_a_gradient(mask_type: str) -> None:
    rng = np.random.default_rng(1)
    encoder = random_encoder(rng, 3, 2, 1)
    network = Network(encoder, NetworkConfig(mask_type=mask_type))
    logit, sparsity = network(inputs(network, *random_rows(rng, encoder, 64)))
    (logit.square().mean() + sparsity).backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_state_is_the_learned_one_alone() -> None:
    network = Network(random_encoder(np.random.default_rng(2), 3, 2, 1), NetworkConfig())
    assert {name.split(".")[0] for name in network.state_dict()} == {"tabnet"}


def test_moving_the_network_moves_the_group_matrices() -> None:
    network = Network(random_encoder(np.random.default_rng(3), 3, 2, 0), NetworkConfig()).double()
    assert network.tabnet.tabnet.encoder.group_attention_matrix.dtype == torch.float64
    assert network.tabnet.embedder.embedding_group_matrix.dtype == torch.float64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_type": "softmax"}, "mask_type 'softmax' must be"),
        ({"width": 0}, "width 0 must be 1 or more"),
        ({"n_steps": 0}, "n_steps 0 must be 1 or more"),
        ({"virtual_batch_size": 1}, "virtual_batch_size 1 must be 2 or more"),
        ({"n_shared": 0, "n_independent": 0}, "nor both 0"),
        ({"n_shared": -1}, "must not be negative"),
        ({"gamma": 0.9}, r"gamma 0\.9 must be 1 or more"),
        ({"gamma": float("nan")}, "gamma nan"),
    ],
)
def test_an_invalid_network_is_refused_by_field_and_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TabrankError, match=message):
        NetworkConfig(**fields)


def test_a_network_without_columns_is_refused() -> None:
    with pytest.raises(TabrankError, match="no columns"):
        Network(Encoder(()), NetworkConfig())
