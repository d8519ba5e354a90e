"""The layers of TabNet, which `training.network.tabnet` combines.

They follow Arik and Pfister 2019, "TabNet: Attentive Interpretable Tabular Learning"
(arXiv:1908.07442), section 3. Every tensor is laid out as [columns, rows]. So the statistics of a
virtual batch and the halves of a gated layer are contiguous, and sums over columns run along rows
of memory.

In shapes, R is the number of rows, B of virtual batches of V rows each, I of inputs and C of
outputs of a linear map, G of the columns among which masks choose, and H of hidden units, which is
twice the width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from serve.contract.errors import TabrankError
from serve.contract.validation import number, one_of, whole
from serve.model.masks import MaskType, num_passes
from serve.model.masks import mask as exact_mask
from serve.model.torch_ops import TorchOps

# TabNet scales each residual sum by √0.5 to keep the variance. It is rounded to float32 as in
# pytorch_tabnet, so that weights from there give the same scores here.
_HALVING = torch.tensor(0.5).sqrt().item()
# A mask whose sum deviates from 1 by more than this is computed again, by a sort.
_MAX_RESIDUAL = 1e-6
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


class GhostBatchNorm(nn.Module):
    """Batch norm that normalises each virtual batch by itself (Hoffer, Hubara and Soudry 2017)."""

    def __init__(self, num_columns: int, config: NetworkConfig) -> None:
        super().__init__()
        self.virtual_batch_size = config.virtual_batch_size
        self.bn: Any = nn.BatchNorm1d(num_columns, momentum=config.momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [C, R] in virtual batches, into which `Tensor.chunk` splits the rows.

        In training mode, the running statistics are updated once for each virtual batch, in order.
        """
        if not self.training:
            normed: Tensor = self.bn(x[None])[0]
            return normed
        num_rows = x.shape[1]
        size = math.ceil(num_rows / math.ceil(num_rows / self.virtual_batch_size))
        num_rest = num_rows % size
        if not num_rest:
            return self._each(x, size)
        whole, rest = torch.split(x, [num_rows - num_rest, num_rest], dim=1)
        return torch.cat([self._each(whole, size), self._each(rest, num_rest)], dim=1)

    def _each(self, x: Tensor, size: int) -> Tensor:
        """Normalise virtual batches of `size` rows, by treating each as more columns [C · B, V]."""
        norm, num_columns, num_batches = self.bn, len(x), x.shape[1] // size
        count = num_columns * num_batches
        weight, bias = (p.repeat_interleave(num_batches) for p in (norm.weight, norm.bias))
        # A group norm of single columns equals a batch norm, and takes half the time on a CPU.
        columns = x.contiguous().view(1, count, size)
        normed, mean, inverse = torch.native_group_norm(
            columns, weight, bias, 1, count, size, count, norm.eps
        )
        # B updates r ← (1 - m) r + m s[b] give (1 - m)^B r + Σ m (1 - m)^(B-1-b) s[b] at once.
        kept = 1.0 - norm.momentum
        shares = x.new_tensor([norm.momentum * kept**age for age in reversed(range(num_batches))])
        with torch.no_grad():
            variance = (inverse**-2 - norm.eps) * (size / (size - 1))
            for running, seen in ((norm.running_mean, mean), (norm.running_var, variance)):
                running.mul_(kept**num_batches).addmv_(seen.view(num_columns, -1), shares)
        norm.num_batches_tracked += num_batches
        return normed.view(num_columns, -1)


class NormedLinear(nn.Module):
    """A linear map followed by a ghost batch norm, [I, R] → [C, R]."""

    def __init__(self, fc: nn.Linear, gain: float, config: NetworkConfig) -> None:
        """Use the linear map `fc`, with new weights of the variance `gain` / √I."""
        super().__init__()
        self.fc = fc
        draw_weights(fc, gain)
        self.bn = GhostBatchNorm(fc.out_features, config)

    def normed(self, x: Tensor) -> Tensor:
        """Map [I, R] to [C, R]."""
        normed: Tensor = self.bn(self.fc.weight @ x)
        return normed


def draw_weights(fc: nn.Linear, gain: float) -> None:
    """Draw the weights [C, I] of `fc` with the variance `gain` / √I."""
    nn.init.normal_(fc.weight, std=math.sqrt(gain / math.sqrt(fc.in_features)))


class GatedLayer(NormedLinear):
    """A linear map, a norm and a gated linear unit, [I, R] → [H, R]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated values [H, R]."""
        return functional.glu(self.normed(x), dim=0)


class Transformer(nn.Module):
    """Feature transformer: gated layers, [I, R] → [H, R], with residuals from the second layer on.

    All transformers share the linear maps of the first layers, but have their own norms.
    """

    def __init__(self, shared: Sequence[nn.Linear], num_inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        depths = range(len(shared), len(shared) + config.n_independent)
        # pytorch_tabnet draws the weights of one layer after the other. Take the maps one by one,
        # so that the same seed gives the same weights.
        maps = itertools.chain(shared, gated_linears(depths, num_inputs, config))
        self.layers = [GatedLayer(fc, 2.0, config) for fc in maps]
        sharing, own = nn.ModuleList(self.layers[: len(shared)]), nn.ModuleList(self.layers[len(shared) :])
        self.shared = nn.ModuleDict({"shared_layers": nn.ModuleList(shared), "glu_layers": sharing})
        self.specifics = nn.ModuleDict({"glu_layers": own})

    def forward(self, x: Tensor) -> Tensor:
        """Map [I, R] to [H, R]."""
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = (x + layer(x)) * _HALVING
        return x


def gated_linears(depths: range, num_inputs: int, config: NetworkConfig) -> Iterator[nn.Linear]:
    """Yield the linear maps of gated layers at these depths. Each computes values, then gates."""
    hidden = 2 * config.width
    for depth in depths:
        yield nn.Linear(hidden if depth else num_inputs, 2 * hidden, bias=False)


class Attention(NormedLinear):
    """Attentive transformer: a linear map, a norm, the prior and a mask, [I, R] → [G, R]."""

    def __init__(self, num_columns: int, config: NetworkConfig) -> None:
        super().__init__(nn.Linear(config.width, num_columns, bias=False), 1.0, config)
        self.mask_type = config.mask_type

    def forward(self, x: Tensor, prior: Tensor | None) -> Tensor:
        """Return the mask M [G, R]."""
        logits = self.normed(x)
        if prior is not None:
            logits = logits * prior
        chosen: Tensor = Mask.apply(logits, self.mask_type)  # type: ignore[no-untyped-call]
        if not self.training:
            # A few rows need a sort to be exact. Training does without it, because no served score
            # has to equal a score during training.
            short = torch.nonzero(~((chosen.sum(0) - 1.0).abs() <= _MAX_RESIDUAL))[:, 0]
            if len(short):
                chosen[:, short] = _sorted(self.mask_type, logits[:, short])
        return chosen


class Mask(torch.autograd.Function):
    """Sparsemax (Martins and Astudillo 2016) or 1.5-entmax (Peters, Niculae and Martins 2019).

    A few steps of Newton's method find the thresholds; `serve.model.masks` derives them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mask_type: MaskType) -> Tensor:
        """Return M [G, R] of logits [G, R]: relu(z - τ)^k of z = logits / k with the sum 1."""
        k = 2 if mask_type == "entmax" else 1
        z = logits / k
        threshold, step = z.mean(0), torch.tensor(-(len(z) ** (-1 / k)))
        # Near the threshold, each pass doubles the number of correct digits, so float64 needs one
        # pass more than float32.
        for _ in range(num_passes(mask_type, len(z)) + (z.dtype == torch.float64)):
            threshold = threshold + step
            excess = (z - threshold).relu_()
            slope = excess.sign() if k == 1 else excess
            total = (slope * excess).sum(0)
            step = (total - total ** (1 - 1 / k)) / slope.sum(0)
        # Subtract the last step from the excess and not from the threshold, which would round it if
        # it is far from 0. If rounding turns the step around, it must not reach other columns.
        excess = (excess - excess.sign() * step).relu_()
        slope = excess.sign() if k == 1 else excess
        ctx.save_for_backward(slope)
        return slope * excess

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the logits. `slope` is the derivative of M if τ stays fixed."""
        (slope,) = ctx.saved_tensors
        by_logits = gradient * slope
        return by_logits.addcmul_(by_logits.sum(0) / slope.sum(0), slope, value=-1.0), None


def _sorted(mask_type: MaskType, logits: Tensor) -> Tensor:
    """Compute the mask by a sort, in float32, [G, R] → [G, R]."""
    scaled = logits.float() * (0.5 if mask_type == "entmax" else 1.0)
    chosen: Tensor = exact_mask(TorchOps(logits.device), mask_type, scaled, len(logits), exact=True)[0]
    return chosen.to(logits.dtype)
