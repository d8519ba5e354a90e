"""TabNet's layers with hand-written backward passes; `training.network.tabnet` combines them.

Arik and Pfister 2019, "TabNet: Attentive Interpretable Tabular Learning" (arXiv:1908.07442),
section 3. A layer keeps no state of a pass: the tape holds what the backward pass needs. Every
tensor is laid out [columns, rows]: the statistics of a virtual batch and the halves of a gated
layer are contiguous, and sums over columns run along rows of memory.

Letters: R rows, B virtual batches of V rows each, I inputs and C outputs of a linear map, G columns
that the masks choose among, H hidden units, twice the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from serve.model.masks import MaskType, num_passes
from serve.model.masks import mask as exact_mask
from serve.model.torch_ops import TorchOps

# TabNet scales each residual sum by √0.5 to keep the variance. Rounded to float32, as in
# pytorch_tabnet, whose weights give the same scores here.
_HALVING = torch.tensor(0.5).sqrt().item()
# Added to a mask before the logarithm, which is infinite at 0.
_LEAST = 1e-15
# Largest deviation of a mask's sum from 1 that needs no further passes.
_MAX_RESIDUAL = 1e-6


class Tape:
    """Values that one pass over `num_batches` virtual batches saves, and the gradients it finds."""

    def __init__(self, num_batches: int, *, training: bool) -> None:
        self.num_batches, self.training = num_batches, training
        self.gradients: dict[Tensor, Tensor] = {}
        # Norms with the means and biased variances [C, B, 1] of their virtual batches.
        self.statistics: list[tuple[Any, Tensor, Tensor]] = []
        # Norms with the gradients [C · B] of weight and bias, by virtual batch.
        self.norm_gradients: list[tuple[Any, Tensor, Tensor]] = []
        self._saved: list[tuple[Any, ...]] = []

    def save(self, *values: Any) -> None:
        """Save values for the backward pass; save nothing outside of training."""
        if self.training:
            self._saved.append(values)

    def load(self) -> tuple[Any, ...]:
        """Remove and return the values that were saved last."""
        return self._saved.pop()

    def update_statistics(self, num_rows: int) -> None:
        """Update the running statistics of the norms, all of one momentum m, in a few calls.

        B updates r ← (1 - m) r + m s[b] give (1 - m)^B r + Σ m (1 - m)^(B-1-b) s[b]. A virtual
        batch has `num_rows` rows.
        """
        if not self.statistics:
            return
        norms, means, variances = zip(*self.statistics, strict=True)
        momentum = norms[0].momentum
        running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
        weights = _weights(momentum, self.num_batches, running[0].dtype, running[0].device)
        seen = (torch.cat(means + variances)[:, :, 0] * weights).sum(1)
        seen[len(seen) // 2 :] *= num_rows / (num_rows - 1)
        torch._foreach_mul_(running, (1 - momentum) ** self.num_batches)
        torch._foreach_add_(running, seen.split_with_sizes([len(buffer) for buffer in running]))
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], self.num_batches)

    def add(self, weight: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
        """Add factor · left @ right to the gradient of a weight, which several layers may share."""
        if weight in self.gradients:
            self.gradients[weight].addmm_(left, right, alpha=factor)
        else:
            self.gradients[weight] = (left @ right).mul_(factor)

    def sum_norms(self) -> None:
        """Sum the gradients of the norms over the virtual batches, in a few calls."""
        norms, by_weight, by_bias = zip(*self.norm_gradients, strict=True)
        parameters = [norm.weight for norm in norms] + [norm.bias for norm in norms]
        total = torch.cat(by_weight + by_bias).view(-1, self.num_batches).sum(1)
        parts = total.split_with_sizes([len(p) for p in parameters])
        self.gradients.update(zip(parameters, parts, strict=True))


@lru_cache(maxsize=64)
def _weights(momentum: float, num_batches: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weight of each virtual batch in a running statistic, [B]."""
    age = torch.arange(num_batches - 1, -1, -1, dtype=torch.float64)
    return (momentum * (1 - momentum) ** age).to(device, dtype)


class GhostBatchNorm(nn.Module):
    """Batch norm of each virtual batch by itself (Hoffer, Hubara and Soudry 2017)."""

    def __init__(self, num_columns: int, momentum: float) -> None:
        super().__init__()
        self.bn: Any = nn.BatchNorm1d(num_columns, momentum=momentum)


class NormedLinear(nn.Module):
    """Linear map of `factor` times the input, followed by its ghost batch norm."""

    def __init__(self, fc: nn.Linear, momentum: float, *, factor: float, gain: float) -> None:
        """Draw the weights of `fc` with the variance `gain` / √I."""
        super().__init__()
        self.fc, self.factor = fc, factor
        draw_weights(fc, gain)
        self.bn = GhostBatchNorm(fc.out_features, momentum)

    def normed(self, x: Tensor, tape: Tape) -> Tensor:
        """Map [I, R] to [C, R]; the caller may change the result in place."""
        norm = self.bn.bn
        weight: Tensor = self.fc.weight * self.factor
        # Outside of training the norm is linear, so it is folded into the map.
        if not tape.training:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt_()
            shift = norm.bias - scale * norm.running_mean
            out: Tensor = torch.addmm(shift[:, None], weight * scale[:, None], x)
            return out
        centred = (weight @ x).view(len(weight), tape.num_batches, -1)
        num_rows = centred.shape[2]
        # A sum takes a third of the time of `mean`.
        mean = centred.sum(2, keepdim=True).div_(num_rows)
        centred -= mean
        variance = torch.linalg.vector_norm(centred, dim=2, keepdim=True).square_().div_(num_rows)
        scale = (variance + norm.eps).rsqrt_()
        normed: Tensor = centred * (norm.weight[:, None, None] * scale)
        normed += norm.bias[:, None, None]
        tape.statistics.append((norm, mean, variance))
        tape.save(x, weight, centred, scale)
        return normed.view(len(weight), -1)

    def normed_backward(
        self, gradient: Tensor, tape: Tape, times: float = 1.0, onto: Tensor | None = None
    ) -> Tensor:
        """Return the gradient of x from `times` that of the output, added to `onto` if given."""
        norm = self.bn.bn
        x, weight, centred, scale = tape.load()
        channels, num_batches, num_rows = centred.shape
        # One channel for each virtual batch.
        images = (1, channels * num_batches, num_rows)
        flat = scale.view(-1)
        by_z, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient.view(images),
            centred.view(images),
            (norm.weight[:, None] * times).expand(channels, num_batches).reshape(-1),
            None,
            None,
            torch.zeros_like(flat),
            flat,
            True,
            norm.eps,
            [True, True, True],
        )
        by_z = by_z.view(channels, -1)
        if times != 1.0:
            by_weight, by_bias = by_weight * times, by_bias * times
        tape.norm_gradients.append((norm, by_weight, by_bias))
        tape.add(self.fc.weight, by_z, x.T, self.factor)
        return weight.T @ by_z if onto is None else onto.addmm_(weight.T, by_z)


def draw_weights(fc: nn.Linear, gain: float) -> None:
    """Draw weights [C, I] with the variance `gain` / √I."""
    nn.init.normal_(fc.weight, std=math.sqrt(gain / math.sqrt(fc.in_features)))


class GatedLayer(NormedLinear):
    """Linear map, norm and gated linear unit, [I, R] → [H, R]; a residual from the second layer on.

    TabNet halves the variance of each sum: out = h · (in + unit). This layer returns u = out /
    h^depth, so that the scale is a factor of small weights, not a pass over the rows.
    """

    def __init__(self, fc: nn.Linear, momentum: float, depth: int) -> None:
        super().__init__(fc, momentum, factor=_HALVING ** max(depth - 1, 0), gain=2.0)
        self.skips = depth > 0
        self.times = _HALVING ** (1 - depth) if self.skips else 1.0

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """Return u [H, R]."""
        value, gate = self.normed(x, tape).chunk(2)
        gate.sigmoid_()
        tape.save(value, gate)
        return torch.addcmul(x, value, gate, value=self.times) if self.skips else value * gate

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Return the gradient of x, in the memory of the output's gradient where possible."""
        value, gate = tape.load()
        by_normed = gradient.new_empty(2 * len(value), gradient.shape[1])
        by_value, by_gate = by_normed.chunk(2)
        torch.mul(gradient, gate, out=by_value)
        torch.mul(gradient, value, out=by_gate)
        torch.ops.aten.sigmoid_backward(by_gate, gate, grad_input=by_gate)
        return self.normed_backward(by_normed, tape, self.times, gradient if self.skips else None)


class Transformer(nn.Module):
    """Feature transformer: gated layers, [I, R] → [H, R], but for the scale `factor`.

    All transformers share the linear maps of the first layers, but not their norms.
    """

    def __init__(
        self, shared: Sequence[nn.Linear], num_own: int, num_inputs: int, width: int, momentum: float
    ) -> None:
        super().__init__()
        layers: list[GatedLayer] = []
        for depth in range(len(shared) + num_own):
            own = depth >= len(shared)
            fc = gated_linear(num_inputs if depth == 0 else width, width) if own else shared[depth]
            layers.append(GatedLayer(fc, momentum, depth))
        self.shared = nn.ModuleDict(
            {
                "shared_layers": nn.ModuleList(shared),
                "glu_layers": nn.ModuleList(layers[: len(shared)]),
            }
        )
        self.specifics = nn.ModuleDict({"glu_layers": nn.ModuleList(layers[len(shared) :])})
        self.layers = tuple(layers)
        self.factor = _HALVING ** (len(layers) - 1)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """Return the output of the paper's transformer divided by `factor`."""
        for layer in self.layers:
            x = layer.forward(x, tape)
        return x

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Return the gradient of x; `gradient` is overwritten."""
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient, tape)
        return gradient


def gated_linear(num_inputs: int, width: int) -> nn.Linear:
    """Return the linear map of a gated layer with H = `width`: values, then gates."""
    return nn.Linear(num_inputs, 2 * width, bias=False)


class Attention(NormedLinear):
    """Attentive transformer: a linear map of `factor` times the input, norm, prior and mask."""

    def __init__(self, fc: nn.Linear, momentum: float, factor: float, mask_type: MaskType) -> None:
        super().__init__(fc, momentum, factor=factor, gain=1.0)
        self.mask_type = mask_type

    def forward(self, x: Tensor, prior: Tensor | None, tape: Tape) -> tuple[Tensor, Tensor | None]:
        """Return (M [G, R], log M in training or None); only training needs log M."""
        normed = self.normed(x, tape)
        logits = normed if prior is None else normed * prior
        chosen, slope = MASKS[self.mask_type](logits)
        if tape.training:
            logarithm = chosen.add(_LEAST).log_()
            tape.save(prior, normed, slope, logarithm)
            return chosen, logarithm
        # A few rows need a sort. Training does without: no served score must equal its own.
        short = torch.nonzero(~((chosen.sum(0) - 1.0).abs() <= _MAX_RESIDUAL))[:, 0]
        if len(short):
            chosen[:, short] = _sorted(self.mask_type, logits[:, short])
        return chosen, None

    def backward(self, gradient: Tensor, by_entropy: float, tape: Tape) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and the prior from those of M and of the sum of M · log M."""
        prior, normed, slope, logarithm = tape.load()
        # d(M log M) = 1 + log M. The 1 has no effect on a mask, because a mask's sum is fixed.
        by_logits = torch.add(gradient, logarithm, alpha=by_entropy).mul_(slope)
        by_logits.addcmul_(by_logits.sum(0) / slope.sum(0), slope, value=-1.0)
        by_prior = None
        if prior is not None:
            by_prior = by_logits * normed
            by_logits *= prior
        return self.normed_backward(by_logits, tape), by_prior


def _entmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return (1.5-entmax M [G, R] of logits [G, R], √M, from which its Jacobian follows).

    Peters, Niculae and Martins 2019, "Sparse Sequence-to-Sequence Models".
    """
    logits = logits * 0.5
    threshold, step = logits.mean(0), -(len(logits) ** -0.5)
    excess, square = torch.empty_like(logits), torch.empty_like(logits)
    for _ in range(_passes("entmax", logits)):
        threshold += step
        torch.sub(logits, threshold, out=excess).relu_()
        total = torch.mul(excess, excess, out=square).sum(0)
        step = (total - total.sqrt()) / excess.sum(0)
    # Take the last step from the excess: a threshold far from 0 would round it. A step that
    # rounding turned back must not reach other columns.
    excess.addcmul_(torch.sign(excess, out=square), step, value=-1.0).relu_()
    return torch.mul(excess, excess, out=square), excess


def _sparsemax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sparsemax M [G, R] of logits [G, R], 1 where M is above 0).

    Martins and Astudillo 2016, "From Softmax to Sparsemax".
    """
    threshold, step = logits.mean(0), logits.new_tensor(-1.0 / len(logits))
    excess, support = torch.empty_like(logits), torch.empty_like(logits)
    for _ in range(_passes("sparsemax", logits)):
        threshold += step
        torch.sub(logits, threshold, out=excess).relu_()
        torch.sign(excess, out=support)
        step = (excess.sum(0) - 1.0) / support.sum(0)
    # As in `_entmax`.
    excess.addcmul_(support, step, value=-1.0).relu_()
    return excess, torch.sign(excess, out=support)


def _sorted(mask_type: MaskType, logits: Tensor) -> Tensor:
    """Return the mask by a sort, in float32: [G, R] → [G, R]."""
    scaled = logits.float() * (0.5 if mask_type == "entmax" else 1.0)
    chosen: Tensor = exact_mask(TorchOps(logits.device), mask_type, scaled, len(logits), exact=True)[0]
    return chosen.to(logits.dtype)


def _passes(mask_type: MaskType, logits: Tensor) -> int:
    # Near the threshold each pass doubles the correct digits, so float64 needs one more than
    # float32.
    return num_passes(mask_type, len(logits)) + (logits.dtype == torch.float64)


MASKS = {"entmax": _entmax, "sparsemax": _sparsemax}
