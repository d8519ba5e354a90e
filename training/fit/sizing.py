"""Settings of a fit by the number of its rows, and when a search would do better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from training.fit.loop import FitConfig, State
from training.network.network import NetworkConfig

# Choose the largest batch of these that leaves an epoch so many steps.
BATCHES, EPOCH_STEPS = (128, 256, 512, 1024), 250
# Take so many steps in all, within these bounds of the epochs.
STEPS, EPOCHS = 1_500, (6, 30)
# Weight decay forgets a step after so many epochs, whatever the rows (Wang and Aitchison 2024, "How
# to set AdamW's weight decay as you scale model and dataset size", arXiv:2405.13698). Without
# LightGBM's labels, one epoch is better.
MEMORY_EPOCHS = 4.0
# So many row passes, rows times epochs, train in this process: they take about a minute on one core
# with the smallest batch, which is the slowest. Ray takes longer to start, on a busy machine by
# minutes, than to repeat that if it is killed. Longer trainings gain from its restarts.
IN_PROCESS_PASSES = 2_000_000
# Where the validation logloss falls by more in the last epoch, longer training gains.
STILL_FALLING = 0.002
# With fewer rows for each parameter, size and regularisation decide the quality.
FEW_ROWS = 50


def sized(num_rows: int, **given: Any) -> FitConfig:
    """Return the settings for so many training rows; those that are `given` take precedence.

    Trains without Ray (`num_workers` 0) up to `IN_PROCESS_PASSES`.
    """
    batch = max([size for size in BATCHES if num_rows >= size * EPOCH_STEPS], default=BATCHES[0])
    epochs = min(max(STEPS * batch // max(num_rows, 1), EPOCHS[0]), EPOCHS[1])
    config = replace(FitConfig(NetworkConfig(width=8, n_steps=1), epochs, batch_size=batch), **given)
    num_steps = max(num_rows / config.batch_size, 1.0)
    # Bound it as a search does: with few rows, each step would erase the weights.
    decay = min(1.0 / (config.learning_rate * num_steps * MEMORY_EPOCHS), 1.0)
    workers = 0 if num_rows * config.epochs <= IN_PROCESS_PASSES else 1
    return replace(config, **{"weight_decay": decay, "num_workers": workers} | given)


def advice(state: State, config: FitConfig, num_rows: int, num_parameters: int) -> list[str]:
    """Return why a search would do better than a fit with this outcome, a sentence a reason."""
    losses = [line["valid_logloss"] for line in state.history]
    fall = 1.0 - losses[-1] / losses[-2] if len(losses) > 1 else 0.0
    falls = f"the validation logloss still fell by {fall:.1%} in the last of {config.epochs} epochs"
    each = num_rows / num_parameters
    few = f"{num_rows:,} training rows are {each:.0f} for each of the network's {num_parameters:,} parameters"
    reasons = [text for holds, text in ((fall > STILL_FALLING, falls), (each < FEW_ROWS, few)) if holds]
    return [f"`training search` would do better: {reason}" for reason in reasons]
