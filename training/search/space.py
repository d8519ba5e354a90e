"""The search space of network and optimiser settings, which depends on the number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from training.fit.loop import FitConfig
from training.network.network import NetworkConfig

WIDTHS = (8, 16, 24, 32, 48, 64)
BATCHES = (128, 256, 512, 1024, 2048, 4096)
VIRTUAL_BATCHES = (64, 128, 256, 512)
# Bounds of the row passes of a training over all its epochs. The bounds of the number of epochs
# take precedence.
ROW_PASSES = (300_000, 3_000_000)

# The cheapest network of the space.
SMALLEST = NetworkConfig(width=8, n_steps=1, n_independent=1, n_shared=1)


class Space:
    """The distributions of the settings for `num_rows` training rows.

    With fewer rows, networks are narrower, batches are smaller, and there are more epochs.
    """

    def __init__(self, num_rows: int) -> None:
        widths = [w for w in WIDTHS if w <= 16 or num_rows >= w * 500]
        smallest = min(num_rows / 3_000, BATCHES[-1])
        batches = [b for b in BATCHES if smallest <= b <= num_rows / 20] or [BATCHES[0]]
        fewest = min(max(round(ROW_PASSES[0] / num_rows), 2), 20)
        most = max(min(round(ROW_PASSES[1] / num_rows), 100), fewest + 4)
        self.distributions: dict[str, BaseDistribution] = {
            "width": CategoricalDistribution(widths),
            "n_steps": IntDistribution(1, 4),
            "gamma": FloatDistribution(1.0, 2.0),
            "mask_type": CategoricalDistribution(("entmax", "sparsemax")),
            "n_independent": IntDistribution(1, 2),
            "n_shared": IntDistribution(1, 2),
            "lambda_sparse": FloatDistribution(1e-6, 1e-3, log=True),
            "momentum": FloatDistribution(0.01, 0.3, log=True),
            "virtual_batch_size": CategoricalDistribution(VIRTUAL_BATCHES),
            "batch_size": CategoricalDistribution(batches),
            "epochs": IntDistribution(fewest, most, log=True),
            "learning_rate": FloatDistribution(3e-3, 6e-2, log=True),
            "weight_decay": FloatDistribution(1e-5, 1.0, log=True),
        }

    @staticmethod
    def config(point: Mapping[str, Any], base: FitConfig) -> FitConfig:
        """Return `base` with the settings of a point."""
        network = {field.name: point[field.name] for field in fields(NetworkConfig)}
        rest = {name: value for name, value in point.items() if name not in network}
        return replace(base, **rest, network=NetworkConfig(**network))

    def point(self, config: FitConfig) -> dict[str, Any]:
        """Return the point of the space nearest to a configuration."""
        given = vars(config.network) | vars(config)
        return {name: _nearest(known, given[name]) for name, known in self.distributions.items()}


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        if isinstance(value, str):
            return value
        return min(distribution.choices, key=lambda choice: abs(float(choice or 0) - value))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return min(max(value, distribution.low), distribution.high)
