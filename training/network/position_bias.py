"""What a row's position does to its label, learned beside the network so that the network need not learn it.

Only the network is exported: it answers as for the first position, where no bias acts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from serve.features.surface import PositionBias

START = 50.0
"""τ before anything is learned: positions matter little."""

_PACE = 5.0
"""The bias moves so many times as far in a step as a weight does: AdamW moves both by about the learning rate,
and a bias has further to go in the few hundred steps of a short run."""

_LEAST = 1e-6
"""Of 1 - θ, for its logarithm."""


class Bias(nn.Module):
    """Turns the logits of an unbiased label into those of the label at a position.

    `examined`: P(label) = θ(position) · sigmoid(logit), the position-based model of Craswell et al. (2008): who does
    not look does not click. θ is a curve, 1 / (1 + position / τ), with τ learned: a table of one θ for each position
    learns too slowly, since what is popular explains the position before the table does.
    """

    def __init__(self, kind: PositionBias) -> None:
        super().__init__()
        learned = nn.Parameter(torch.tensor(math.log(START) / _PACE))
        self.value = learned if kind == "examined" else None

    @property
    def tau(self) -> float | None:
        """The position, from 0, at which half still look; None where position is ignored."""
        return None if self.value is None else math.exp(_PACE * self.value.item())

    def forward(self, logit: Tensor, position: Tensor) -> Tensor:
        """logit [R], position i64 [R] from 0 → logit of the label as it was shown [R]."""
        if self.value is None:
            return logit
        share = position.to(logit.dtype) * torch.exp(-_PACE * self.value)  # position / τ
        # θσ / (1 - θσ) = θ e^logit / (1 + (1 - θ) e^logit), with θ = 1 / (1 + share), 1 - θ = share · θ
        below = torch.log1p(share)
        hidden = torch.log(torch.clamp(share, min=_LEAST)) - below
        return torch.where(position == 0, logit, logit - below - softplus(logit + hidden))
