"""TabNet's passes in training: pytorch_tabnet's mathematics on its own parameters, in less time.

pytorch_tabnet normalises one virtual batch after the other, sorts the logits of each mask, and leaves all
gradients to autograd. Here all virtual batches are normalised at once, thresholds come from a few steps of
Newton's method (`serve.masks` derives them), and the two costly pieces, a gated layer and an attention,
have backward passes written by hand. Everything is laid out [columns, rows]: the statistics of a virtual
batch and the halves of a gated layer are contiguous, and sums over columns run along whole rows of memory.

Letters: R rows, B virtual batches of V rows each, C channels of a norm, D network inputs after the
embedding, G columns that the masks choose among, H hidden units, twice the width.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from serve.masks import MaskType, num_passes

_HALVING = torch.tensor(0.5).sqrt().item()
"""TabNet scales each residual sum by this, to keep the variance; pytorch_tabnet rounds it to float32."""
_LEAST = 1e-15
"""What pytorch_tabnet adds to a mask before it takes the logarithm."""


def forward(tabnet: Any, x: Tensor, spread: Tensor | None, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """What pytorch_tabnet's `TabNetNoEmbeddings` answers for x [R, D]: (logits [R], negative entropy).

    In training mode its running statistics move on as pytorch_tabnet's do, once per virtual batch and in
    order. In eval mode no gradient is kept.

    Args:
        tabnet: a `TabNetNoEmbeddings` of one output.
        x: its inputs, embedded.
        spread: i64 [D], the column of the masks that each input belongs to; None where D = G.
        share: [D, 1], what an input gets of its column's mask; None where D = G.
    """
    encoder = tabnet.encoder
    # Its norm goes over all rows; whatever follows is each virtual batch's own.
    x = encoder.initial_bn(x).T.contiguous()
    found = [
        _steps(tabnet, part, num_batches, spread, share)
        for part, num_batches in (
            _whole_and_rest(x, encoder.virtual_batch_size) if encoder.training else [(x, 1)]
        )
    ]
    entropy = sum(entropy for _, entropy in found)
    return torch.cat([logit for logit, _ in found]), entropy / (x.shape[1] * encoder.n_steps)


def _whole_and_rest(x: Tensor, virtual_batch_size: int) -> list[tuple[Tensor, int]]:
    """Columns [D, R] → ([D, B · V], B) and, where a smaller batch is left over, it too; as `Tensor.chunk`."""
    num_rows = x.shape[1]
    size = math.ceil(num_rows / math.ceil(num_rows / virtual_batch_size))
    num_whole = num_rows // size
    if num_whole * size == num_rows:
        return [(x, num_whole)]
    return [
        (x[:, : num_whole * size].contiguous(), num_whole),
        (x[:, num_whole * size :].contiguous(), 1),
    ]


def _steps(
    tabnet: Any, x: Tensor, num_batches: int, spread: Tensor | None, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(logits [R], sum of M · log M over steps, rows and columns) of normalised inputs [D, R]."""
    encoder = tabnet.encoder
    gamma = encoder.gamma
    statistics = _Statistics(num_batches)
    _, hidden = _transform(encoder.initial_splitter, x, statistics).chunk(2)
    shared_out = x if share is None else x * share
    prior: Tensor | None = None
    chosen: Tensor | None = None
    entropies, outputs = [], []
    for attention, transformer in zip(encoder.att_transformers, encoder.feat_transformers, strict=True):
        if chosen is not None:
            left = gamma - chosen
            prior = left if prior is None else left * prior
        norm = attention.bn.bn
        chosen, entropy = _Attention.apply(  # type: ignore[no-untyped-call]
            hidden,
            attention.fc.weight,
            norm.weight,
            norm.bias,
            prior,
            norm,
            encoder.mask_type,
            statistics,
        )
        entropies.append(entropy)
        seen = chosen if spread is None else chosen.index_select(0, spread)
        decision, hidden = _transform(transformer, seen * shared_out, statistics).chunk(2)
        outputs.append(torch.relu(decision))
    statistics.move_on()
    total = outputs[0] if len(outputs) == 1 else torch.stack(outputs).sum(0)
    return (tabnet.final_mapping.weight @ total)[0], torch.stack(entropies).sum()


def _transform(transformer: Any, x: Tensor, statistics: _Statistics) -> Tensor:
    """A feature transformer, [in, R] → [H, R]: gated layers, all but the first with a skip."""
    hidden, is_first = x, True
    for block in (transformer.shared, transformer.specifics):
        for layer in getattr(block, "glu_layers", ()):
            norm = layer.bn.bn
            hidden = _Gated.apply(  # type: ignore[no-untyped-call]
                hidden, layer.fc.weight, norm.weight, norm.bias, not is_first, norm, statistics
            )
            is_first = False
    return hidden


class _Statistics:
    """What the norms of one pass saw, for their running statistics to move on in a few calls.

    After B updates r ← (1 - m) r + m s[b] these are (1 - m)^B r + Σ m (1 - m)^(B-1-b) s[b]; TabNet's ghost
    batch norms have one momentum m.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self._norms: list[Any] = []
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []
        self._unbiased = 1.0

    def add(self, norm: Any, mean: Tensor, variance: Tensor, num_rows: int) -> None:
        """Takes mean and biased variance [C, B, 1] of virtual batches of `num_rows`."""
        self._norms.append(norm)
        self._means.append(mean)
        self._variances.append(variance)
        self._unbiased = num_rows / (num_rows - 1)

    def move_on(self) -> None:
        """Updates the running statistics of the norms."""
        if not self._norms:
            return
        momentum = self._norms[0].momentum
        running = [norm.running_mean for norm in self._norms] + [norm.running_var for norm in self._norms]
        weights = _weights(momentum, self.num_batches, running[0].dtype, running[0].device)
        seen = (torch.cat(self._means + self._variances)[:, :, 0] * weights).sum(1)
        seen[len(seen) // 2 :] *= self._unbiased
        torch._foreach_mul_(running, (1 - momentum) ** self.num_batches)
        torch._foreach_add_(running, seen.split_with_sizes([len(buffer) for buffer in running]))
        torch._foreach_add_([norm.num_batches_tracked for norm in self._norms], self.num_batches)


@lru_cache(maxsize=64)
def _weights(momentum: float, num_batches: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[B]: what each virtual batch adds to a running statistic."""
    age = torch.arange(num_batches - 1, -1, -1, dtype=torch.float64)
    return (momentum * (1 - momentum) ** age).to(device, dtype)


def _normalised(z: Tensor, norm: Any, statistics: _Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises z [C, R], which it centres in place: (normed [C, R], centred [C, B, V], 1 / std [C, B, 1])."""
    grouped = z.view(len(z), statistics.num_batches, -1)
    normed = torch.empty_like(grouped)
    if norm.training:
        num_rows = grouped.shape[2]
        mean = grouped.sum(2, keepdim=True).div_(num_rows)  # in a third of the time that `mean` takes
        grouped -= mean
        variance = torch.mul(grouped, grouped, out=normed).sum(2, keepdim=True).div_(num_rows)
        statistics.add(norm, mean, variance, num_rows)
    else:
        grouped -= norm.running_mean[:, None, None]
        variance = norm.running_var[:, None, None]
    scale = (variance + norm.eps).rsqrt()
    torch.mul(grouped, scale * norm.weight[:, None, None], out=normed)
    normed += norm.bias[:, None, None]
    return normed.view_as(z), grouped, scale


def _normalised_backward(
    gradient: Tensor, centred: Tensor, scale: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z [C, R], the norm's weight [C] and bias [C] from that of the normed [C, R]."""
    channels, num_batches, num_rows = centred.shape
    images = (1, channels * num_batches, num_rows)  # a channel per virtual batch
    per_image = weight[:, None].expand(channels, num_batches).reshape(-1)
    flat = scale.reshape(-1)
    z, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
        gradient.view(images),
        centred.view(images),
        per_image,
        None,
        None,
        torch.zeros_like(flat),
        flat,
        True,
        eps,
        [True, True, True],
    )
    return (
        z.view(channels, -1),
        by_weight.view(channels, num_batches).sum(1),
        by_bias.view(channels, num_batches).sum(1),
    )


class _Gated(torch.autograd.Function):
    """Linear, ghost batch norm, gated linear unit, and the scaled sum with what came in where it is skipped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        skips: bool,
        norm: nn.Module,
        statistics: _Statistics,
    ) -> Tensor:
        normed, centred, scale = _normalised(weight @ x, norm, statistics)
        value, gate = normed.chunk(2)
        gate.sigmoid_()
        out = value * gate
        if skips:
            out.add_(x).mul_(_HALVING)
        ctx.save_for_backward(x, weight, norm_weight, normed, centred, scale)
        ctx.skips, ctx.eps = skips, norm.eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, norm_weight, normed, centred, scale = ctx.saved_tensors
        value, gate = normed.chunk(2)
        if ctx.skips:
            gradient = gradient * _HALVING
        by_normed = torch.empty_like(normed)
        by_value, by_gate = by_normed.chunk(2)
        torch.mul(gradient, gate, out=by_value)
        torch.mul(gradient, value, out=by_gate)
        torch.ops.aten.sigmoid_backward(by_gate, gate, grad_input=by_gate)
        by_z, by_norm_weight, by_norm_bias = _normalised_backward(
            by_normed, centred, scale, norm_weight, ctx.eps
        )
        by_x = torch.addmm(gradient, weight.T, by_z) if ctx.skips else weight.T @ by_z
        return by_x, by_z @ x.T, by_norm_weight, by_norm_bias, None, None, None


class _Attention(torch.autograd.Function):
    """Linear, ghost batch norm, prior and mask: (M [G, R], the sum of M · log M)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        prior: Tensor | None,
        norm: nn.Module,
        mask_type: MaskType,
        statistics: _Statistics,
    ) -> tuple[Tensor, Tensor]:
        normed, centred, scale = _normalised(weight @ x, norm, statistics)
        chosen, slope = MASKS[mask_type](normed if prior is None else normed * prior)
        logarithm = chosen.add(_LEAST).log_()
        ctx.save_for_backward(x, weight, norm_weight, prior, normed, centred, scale, slope, logarithm)
        ctx.eps = norm.eps
        return chosen, torch.dot(chosen.view(-1), logarithm.view(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, norm_weight, prior, normed, centred, scale, slope, logarithm = ctx.saved_tensors
        # d(M log M) = 1 + log M, of which a mask, whose sum is fixed, does not feel the 1.
        by_logits = (logarithm * by_entropy).add_(gradient).mul_(slope)
        by_logits.addcmul_(by_logits.sum(0) / slope.sum(0), slope, value=-1.0)
        by_prior = None
        if prior is not None:
            by_prior = by_logits * normed
            by_logits *= prior
        by_z, by_norm_weight, by_norm_bias = _normalised_backward(
            by_logits, centred, scale, norm_weight, ctx.eps
        )
        return weight.T @ by_z, by_z @ x.T, by_norm_weight, by_norm_bias, by_prior, None, None, None


def _entmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(1.5-entmax M of each row of logits [G, R], √M, on which its Jacobian hangs)."""
    num_columns = len(logits)
    logits = logits * 0.5
    threshold = logits.mean(0) - num_columns**-0.5
    excess, square = torch.empty_like(logits), torch.empty_like(logits)
    for _ in range(_passes("entmax", logits)):
        torch.sub(logits, threshold, out=excess).relu_()
        total = torch.mul(excess, excess, out=square).sum(0)
        threshold += (total - total.sqrt()) / excess.sum(0)
    torch.sub(logits, threshold, out=excess).relu_()
    return torch.mul(excess, excess, out=square), excess


def _sparsemax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(sparsemax M of each row of logits [G, R], 1 where M is above 0)."""
    threshold = logits.mean(0) - 1.0 / len(logits)
    excess, support = torch.empty_like(logits), torch.empty_like(logits)
    for _ in range(_passes("sparsemax", logits)):
        torch.sub(logits, threshold, out=excess).relu_()
        torch.sign(excess, out=support)
        threshold += (excess.sum(0) - 1.0) / support.sum(0)
    torch.sub(logits, threshold, out=excess).relu_()
    return excess, torch.sign(excess, out=support)


def _passes(mask_type: MaskType, logits: Tensor) -> int:
    # Near its threshold each pass doubles the right digits: one more for those of float64.
    return num_passes(mask_type, len(logits)) + (logits.dtype == torch.float64)


MASKS = {"entmax": _entmax, "sparsemax": _sparsemax}
