"""Compare the training loop with a plain one around the network of pytorch_tabnet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.support.made_up_rows import CONFIG, ENCODER, made_up
from tests.support.pytorch_tabnet_networks import module_of
from training.fit.loop import learning_rate, run
from training.network.network import Network


def plain_loop(train, valid, config):
    """Train with the same batches, optimiser and rates; return the validation logloss."""
    torch.manual_seed(config.seed)
    network = module_of(Network(ENCODER, config.network))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    size = config.batch_size - config.batch_size % config.network.virtual_batch_size
    num_steps, step = len(train) // size * config.epochs, 0
    for epoch in range(1, config.epochs + 1):
        for rows in train.batches(size, slice(None), config.seed * 1_000_003 + epoch):
            optimiser.param_groups[0]["lr"] = learning_rate(step, num_steps, config)
            logit, negative_entropy = network(rows.x)
            loss = binary_cross_entropy_with_logits(logit, rows.label)
            optimiser.zero_grad()
            (loss - config.network.lambda_sparse * negative_entropy).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimiser.step()
            step += 1
    with torch.no_grad():
        logit = network.eval()(valid.x)[0]
    return binary_cross_entropy_with_logits(logit.double(), valid.label.double()).item()


def test_a_plain_loop_and_ours_make_the_same_steps():
    small = replace(CONFIG, network=replace(CONFIG.network, width=4, n_steps=1), epochs=2, batch_size=512)
    train, valid = made_up(1_024, 1), made_up(500, 2)
    ours = run(train, valid, ENCODER, small).history[-1]["valid_logloss"]
    assert ours == pytest.approx(plain_loop(train, valid, small), abs=1e-4)
