"""Position bias: the effect of a row's position on its label, learned beside the network.

The network then need not learn it. Only the network is exported: it scores every candidate as if it
were shown at the first position, where the bias is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from serve.features.surface import PositionBias

# Initial τ, before anything is learned: positions matter little.
START = 50.0

# Factor from the learned parameter to log τ. AdamW moves every parameter by about the learning
# rate, and the bias has further to go than a weight in the few hundred steps of a short run.
_STEP_FACTOR = 5.0

# Lower bound of position / τ before its logarithm is taken.
_LEAST = 1e-6


class Bias(nn.Module):
    """Map from the logits of an unbiased label to the logits of the label at a position.

    `examined`: P(label) = θ(position) · sigmoid(logit), the position-based model of Craswell et al.
    (2008): a viewer who does not examine a candidate does not click it. θ is the curve
    1 / (1 + position / τ) with τ learned. A table with one θ for each position learns too slowly,
    because popularity explains the position before the table does.
    """

    def __init__(self, kind: PositionBias) -> None:
        super().__init__()
        learned = nn.Parameter(torch.tensor(math.log(START) / _STEP_FACTOR))
        self.value = learned if kind == "examined" else None

    @property
    def tau(self) -> float | None:
        """Position, from 0, that half of the viewers examine; None where position is ignored."""
        return None if self.value is None else math.exp(_STEP_FACTOR * self.value.item())

    def forward(self, logit: Tensor, position: Tensor) -> Tensor:
        """Map logit [R] and position i64 [R] (from 0) to the logit of the label as shown [R]."""
        if self.value is None:
            return logit
        # position / τ
        share = position.to(logit.dtype) * torch.exp(-_STEP_FACTOR * self.value)
        # θσ / (1 - θσ) = θ e^logit / (1 + (1 - θ) e^logit),
        # with θ = 1 / (1 + share) and 1 - θ = share · θ.
        below = torch.log1p(share)
        hidden = torch.log(torch.clamp(share, min=_LEAST)) - below
        return torch.where(position == 0, logit, logit - below - softplus(logit + hidden))
