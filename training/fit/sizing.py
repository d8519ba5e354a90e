"""Choose the settings of a fit by the number of its rows, and say when a search would do better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from training.fit.loop import FitConfig, State
from training.network.network import NetworkConfig

# The batch is the largest of these with which an epoch has at least this many steps.
BATCHES, EPOCH_STEPS = (128, 256, 512, 1024), 250
# The number of epochs gives about this many steps in all, but stays within these bounds.
STEPS, EPOCHS = 1_500, (6, 30)
# Weight decay makes the network forget a step after this many epochs, no matter how many rows there
# are (Wang and Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset
# size", arXiv:2405.13698). Without LightGBM's labels, one epoch is better.
MEMORY_EPOCHS = 4.0
# Up to this many row passes (rows times epochs) are trained in this process. They take about a
# minute on one core with the smallest batch, which is the slowest. To start Ray takes longer, on a
# busy machine minutes longer, than to repeat such a training if it is killed. Longer trainings gain
# from Ray's restarts.
IN_PROCESS_PASSES = 2_000_000
# If the validation logloss falls by more than this share in the last epoch, longer training helps.
STILL_FALLING = 0.002
# With fewer rows per parameter, the network's size and regularisation decide its quality.
FEW_ROWS = 50


def sized(num_rows: int, **given: Any) -> FitConfig:
    """Return the settings for this number of training rows. Settings that are `given` stay.

    Up to `IN_PROCESS_PASSES`, `num_workers` is 0, which means training without Ray.
    """
    batch = max([size for size in BATCHES if num_rows >= size * EPOCH_STEPS], default=BATCHES[0])
    epochs = min(max(STEPS * batch // max(num_rows, 1), EPOCHS[0]), EPOCHS[1])
    config = replace(FitConfig(NetworkConfig(width=8, n_steps=1), epochs, batch_size=batch), **given)
    num_steps = max(num_rows / config.batch_size, 1.0)
    # Weight decay has the same bound as in a search. Without it, each step would erase the weights
    # if there are few rows.
    decay = min(1.0 / (config.learning_rate * num_steps * MEMORY_EPOCHS), 1.0)
    workers = 0 if num_rows * config.epochs <= IN_PROCESS_PASSES else 1
    return replace(config, **{"weight_decay": decay, "num_workers": workers} | given)


def advice(state: State, config: FitConfig, num_rows: int, num_parameters: int) -> list[str]:
    """Return why a search would do better than this fit, in one sentence per reason."""
    losses = [line["valid_logloss"] for line in state.history]
    fall = 1.0 - losses[-1] / losses[-2] if len(losses) > 1 else 0.0
    falls = f"the validation logloss still fell by {fall:.1%} in the last of {config.epochs} epochs"
    each = num_rows / num_parameters
    few = f"{num_rows:,} training rows are {each:.0f} for each of the network's {num_parameters:,} parameters"
    reasons = [text for holds, text in ((fall > STILL_FALLING, falls), (each < FEW_ROWS, few)) if holds]
    return [f"`training search` would do better: {reason}" for reason in reasons]
