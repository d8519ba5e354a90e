"""Test TabNet against pytorch_tabnet with the same weights, in float64 to expose rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from serve.model.encoder import Encoder
from tests.support.networks import random_config, random_encoder, reference
from training.network.layers import Mask
from training.network.network import Network, NetworkConfig


def pair(encoder: Encoder, config: NetworkConfig, num_outcomes: int) -> tuple[Network, Any]:
    """Return a network and its equal in pytorch_tabnet; the norms' weights differ by channel."""
    network = Network(encoder, config, num_outcomes).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
    return network, reference(network)


def rows(encoder: Encoder, num_rows: int) -> Tensor:
    dense = torch.randn(num_rows, len(encoder.input_names) - len(encoder.single), dtype=torch.float64)
    index = [torch.randint(0, c, (num_rows, 1)).double() for c in encoder.cardinalities]
    return torch.cat([dense, *index], dim=1)


def theirs(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and sparsity as pytorch_tabnet computes them."""
    output, negative_entropy = module(x)
    return output, -negative_entropy


def assert_same_step(ours: Network, reference: Any, x: Tensor, label: Tensor) -> None:
    """Compare outputs, gradients and running statistics; then both networks take the same step."""
    found: list[tuple[Tensor, Tensor]] = []
    for network, answer in ((ours, ours.tabnet(x)), (reference, theirs(reference, x))):
        network.zero_grad()
        logit, sparsity = answer
        (binary_cross_entropy_with_logits(logit, label) + 0.1 * sparsity).backward()
        found.append((logit.detach(), sparsity.detach()))
    close: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(found[0], found[1], **close)
    named = zip(ours.named_parameters(), reference.parameters(), strict=True)
    for name, mine, other in ((name, p.grad, q.grad) for (name, p), q in named if p.requires_grad):
        assert torch.allclose(mine, other, **close), name
    torch.testing.assert_close(_statistics(ours.tabnet), _statistics(reference), **close)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
            if p.grad is not None and q.grad is not None:
                p.sub_(p.grad, alpha=0.1)
                q.copy_(p)


def _statistics(module: torch.nn.Module) -> dict[str, Tensor]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer for name, buffer in module.state_dict().items() if name.endswith(statistics)}


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["entmax", "sparsemax"]), st.integers(8, 90), st.integers(1, 3))
def test_steps_are_those_of_pytorch_tabnet(
    seed: int, mask_type: str, num_rows: int, num_outcomes: int
) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    encoder = random_encoder(rng, int(rng.integers(0, 6)), int(rng.integers(1, 4)), int(rng.integers(0, 2)))
    # A norm of two or three almost equal rows amplifies even float64's rounding: pytorch_tabnet's
    # own gradients then change by 7e-7 if its weights change by 1e-15.
    size = int(rng.integers(8, 40))
    while 0 < num_rows % -(-num_rows // -(-num_rows // size)) < 4:
        size += 1
    config = replace(random_config(rng, mask_type), virtual_batch_size=size, momentum=0.3)
    ours, reference = pair(encoder, config, num_outcomes)
    for _ in range(2):
        x = rows(encoder, num_rows).float().double()
        assert_same_step(ours, reference, x, torch.rand(num_rows, num_outcomes, dtype=torch.float64))
    ours.eval()
    reference.eval()
    x = rows(encoder, 7).float().double()
    with torch.no_grad():
        torch.testing.assert_close(ours.logit(x), theirs(reference, x)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
def test_columns_without_categories_take_the_same_step(mask_type: Any) -> None:
    torch.manual_seed(0)
    encoder = random_encoder(np.random.default_rng(0), 6, 0, 1)
    ours, reference = pair(encoder, NetworkConfig(width=4, mask_type=mask_type, virtual_batch_size=16), 1)
    assert_same_step(ours, reference, rows(encoder, 64), torch.rand(64, 1, dtype=torch.float64))


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_masks_of_many_columns_sum_to_one_in_float32(mask_type: Any, scale: float) -> None:
    """Scoring sorts every row whose sum is further from 1 than that."""
    logits = scale * torch.randn(200, 500, generator=torch.Generator().manual_seed(1))
    chosen = Mask.apply(logits, mask_type)
    torch.testing.assert_close(chosen.sum(0), torch.ones(500), rtol=0, atol=1e-6)
    assert chosen.min() >= 0


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
@pytest.mark.parametrize("num_columns", [5, 300])
def test_float32_selects_no_column_that_float64_leaves_out(mask_type: Any, num_columns: int) -> None:
    """Rounding may choose a column within 1e-5 of the least one that is selected, and no other."""
    logits = torch.randn(num_columns, 4_000, generator=torch.Generator().manual_seed(num_columns))
    exact = Mask.apply(logits.double(), mask_type)
    chosen = Mask.apply(logits, mask_type)
    least = torch.where(exact > 0, logits, torch.inf).amin(0)
    is_out = (exact == 0) & (logits < least - 1e-5)
    assert is_out.any()
    assert not chosen[is_out].any()


def test_scoring_keeps_no_gradient_and_moves_no_statistics() -> None:
    torch.manual_seed(0)
    encoder = random_encoder(np.random.default_rng(0), 3, 2, 0)
    network = Network(encoder, NetworkConfig(width=4)).double().eval()
    before = {name: t.clone() for name, t in network.tabnet.state_dict().items()}
    assert not network.logit(rows(encoder, 20)).requires_grad
    torch.testing.assert_close(network.tabnet.state_dict(), before, rtol=0, atol=0)
