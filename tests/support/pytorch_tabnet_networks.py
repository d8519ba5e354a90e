"""Networks of the package pytorch_tabnet, with which the networks of `training` are compared.

The package has had no release since 2023. No other module imports it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from serve.model.encoder import Encoder
from training.network.network import Network, NetworkConfig
from training.network.tabnet import INPUT_MOMENTUM

with warnings.catch_warnings():
    # The package imports a deprecated name of scipy.
    warnings.simplefilter("ignore", DeprecationWarning)
    from pytorch_tabnet.tab_network import TabNet


def module_of(network: Network) -> Any:
    """Return the package's module with the weights and the mode of one of our networks.

    It maps the same x to (output [R, O], the negative of the sparsity).
    """
    num_outcomes = len(network.tabnet.tabnet.final_mapping.weight)
    module = untrained_module(network.encoder, network.config, num_outcomes)
    module.load_state_dict(network.tabnet.state_dict())
    return module.train(network.training)


def untrained_module(encoder: Encoder, config: NetworkConfig, num_outcomes: int = 1) -> Any:
    """Return the package's module of this shape, with the momentum of our input batch norm."""
    num_inputs, single = len(encoder.input_names), encoder.single
    module = TabNet(
        num_inputs,
        num_outcomes,
        n_d=config.width,
        n_a=config.width,
        n_steps=config.n_steps,
        gamma=config.gamma,
        cat_idxs=list(range(num_inputs - len(single), num_inputs)),
        cat_dims=list(encoder.cardinalities),
        cat_emb_dim=[column.embedding for column in single],
        n_independent=config.n_independent,
        n_shared=config.n_shared,
        mask_type=config.mask_type,
        virtual_batch_size=config.virtual_batch_size,
        momentum=config.momentum,
        group_attention_matrix=torch.eye(num_inputs),
    )
    module.tabnet.encoder.initial_bn.momentum = INPUT_MOMENTUM
    # This layer is never used, so weight decay alone would move its weights.
    module.tabnet.initial_bn.requires_grad_(False)
    return module
