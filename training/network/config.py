"""Settings of TabNet: its shape and its regularisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve.contract.errors import TabrankError
from serve.contract.validation import number, one_of, whole
from serve.model.masks import MaskType

# The largest whole number in a configuration.
MOST = 2**31


@dataclass(frozen=True)
class NetworkConfig:
    """Shape and regularisation of the network. `width` is both n_d and n_a of the paper."""

    width: int = 32
    n_steps: int = 2
    gamma: float = 1.3
    mask_type: MaskType = "entmax"
    n_independent: int = 1
    n_shared: int = 1
    virtual_batch_size: int = 256
    momentum: float = 0.02
    lambda_sparse: float = 1e-4

    def __post_init__(self) -> None:
        one_of(self.mask_type, ("entmax", "sparsemax"), "network: mask_type")
        least = {"width": 1, "n_steps": 1, "n_independent": 0, "n_shared": 0, "virtual_batch_size": 2}
        for name, low in least.items():
            whole(getattr(self, name), f"network: {name}", low, MOST)
        if self.n_independent + self.n_shared == 0:
            raise TabrankError("network: n_independent and n_shared are both 0; give one of them 1 or more")
        number(self.gamma, "network: gamma", 1.0, math.inf)
