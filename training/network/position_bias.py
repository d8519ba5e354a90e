"""Position bias: the label of a row as shown, from the label of a row that is looked at.

P(label as shown) = θ · P(label | looked at), with the examination θ of the row's position: the
position-based model of Craswell et al. (2008), "An experimental comparison of click position-bias
models". θ is estimated once, before any network is trained (`training.examination`). The network
learns the other factor, and only the network is exported: it ranks as if positions had no effect.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def as_shown(logit: Tensor, examination: Tensor) -> Tensor:
    """Map logits [R] and examination [R], above 0 and at most 1, to logits as shown [R]."""
    # θσ / (1 - θσ) = θ e^logit / (1 + (1 - θ) e^logit)
    theta = examination.to(logit.dtype)
    return logit + torch.log(theta) - softplus(logit + torch.log1p(-theta))
