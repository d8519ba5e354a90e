"""Fast TabNet passes for training: pytorch_tabnet's mathematics on pytorch_tabnet's parameters.

pytorch_tabnet normalises one virtual batch after the other, sorts the logits of each mask, and
leaves all gradients to autograd. Here all virtual batches are normalised at once, a few steps of
Newton's method find the thresholds (`serve.model.masks` derives them), and the backward pass is
written by hand. Both passes therefore read memory few times, and autograd sees one function.

Letters: R rows, B virtual batches of V rows each, D network inputs after the embedding, G columns
that the masks choose among, N the width of a decision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.network.layers import Attention, Tape, Transformer


class Passes:
    """Forward and backward pass of a `TabNetNoEmbeddings` with one output, after its input norm."""

    def __init__(self, tabnet: Any, spread: Tensor | None, share: Tensor | None) -> None:
        """Wrap a network; its parameters and buffers are read at each pass.

        Args:
            tabnet: the network.
            spread: i64 [D], the mask column of each input; None where D = G.
            share: [D, 1], the share of its column's mask that an input receives; None where D = G.
        """
        self.encoder, self.final = tabnet.encoder, tabnet.final_mapping
        self.spread, self.share = spread, share
        self.splitter = Transformer(self.encoder.initial_splitter)
        self.factor = self.splitter.factor
        self.steps = [
            (Attention(attention, self.factor, self.encoder.mask_type), Transformer(transformer))
            for attention, transformer in zip(
                self.encoder.att_transformers, self.encoder.feat_transformers, strict=True
            )
        ]
        self.parameters = [
            p
            for name, p in tabnet.named_parameters()
            if p.requires_grad and not name.startswith("encoder.initial_bn")
        ]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised inputs [D, R] to (logits [R], negative entropy).

        The result is that of `TabNetNoEmbeddings`.

        In training mode the running statistics are updated as pytorch_tabnet updates them, once for
        each virtual batch and in order. In eval mode no gradient is kept, and the entropy is 0.
        """
        encoder = self.encoder
        if not encoder.training:
            return self.forward(x, Tape(1, training=False))
        found = [
            _Differentiable.apply(part, self, num_batches, *self.parameters)  # type: ignore[no-untyped-call]
            for part, num_batches in _whole_and_rest(x, encoder.virtual_batch_size)
        ]
        entropy = sum(entropy for _, entropy in found)
        return torch.cat([logit for logit, _ in found]), entropy / (x.shape[1] * encoder.n_steps)

    def forward(self, x: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
        """Map inputs [D, R] to (logits [R], sum of M · log M over steps, rows and columns)."""
        width, gamma = self.encoder.n_d, self.encoder.gamma
        hidden = self.splitter.forward(x, tape)[width:]
        shared_out = x if self.share is None else x * self.share
        total = x.new_zeros(width, x.shape[1])
        entropy = x.new_zeros(())
        prior: Tensor | None = None
        for attention, transformer in self.steps:
            chosen, logarithm = attention.forward(hidden, prior, tape)
            if logarithm is not None:
                entropy += torch.dot(chosen.view(-1), logarithm.view(-1))
            seen = chosen if self.spread is None else chosen.index_select(0, self.spread)
            out = transformer.forward(seen * shared_out, tape)
            decision, hidden = out[:width], out[width:]
            total += decision.relu()
            tape.save(prior, chosen, seen, decision)
            prior = gamma - chosen if prior is None else (gamma - chosen).mul_(prior)
        tape.save(shared_out, total)
        tape.update_statistics()
        return (self.factor * self.final.weight @ total)[0], entropy

    def backward(self, by_logit: Tensor, by_entropy: float, tape: Tape) -> Tensor:
        """Return the gradient of x from those of the outputs; put the parameters' on the tape."""
        gamma = self.encoder.gamma
        shared_out, total = tape.load()
        tape.add(self.final.weight, by_logit[None], total.T, self.factor)
        by_total = (self.factor * self.final.weight).T * by_logit
        by_shared = torch.zeros_like(shared_out)
        # Gradient of the hidden half of a step; nothing reads the hidden half of the last step.
        by_hidden: Tensor | None = None
        by_prior: Tensor | None = None
        for attention, transformer in reversed(self.steps):
            prior, chosen, seen, decision = tape.load()
            by_decision = torch.ops.aten.threshold_backward(by_total, decision, 0)
            by_seen = transformer.backward(_join(by_decision, by_hidden), tape)
            by_shared.addcmul_(by_seen, seen)
            by_chosen = self._sum_by_column(by_seen.mul_(shared_out), len(chosen))
            # The next step's prior is (gamma - chosen) · prior.
            if by_prior is not None:
                by_chosen -= by_prior if prior is None else by_prior * prior
            by_hidden, by_own = attention.backward(by_chosen, by_entropy, tape)
            if by_own is not None and by_prior is not None:
                by_own.addcmul_(gamma - chosen, by_prior)
            by_prior = by_own
        assert by_hidden is not None
        by_x = self.splitter.backward(_join(torch.zeros_like(by_total), by_hidden), tape)
        tape.sum_norms()
        return by_x.add_(by_shared if self.share is None else by_shared.mul_(self.share))

    def _sum_by_column(self, by_seen: Tensor, num_columns: int) -> Tensor:
        """Sum over the inputs [D, R] of each column; return [G, R]."""
        if self.spread is None:
            return by_seen
        return by_seen.new_zeros(num_columns, by_seen.shape[1]).index_add_(0, self.spread, by_seen)


class _Differentiable(torch.autograd.Function):
    """`Passes.forward` and `Passes.backward` as one autograd function."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, passes: Passes, num_batches: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.passes, ctx.tape = passes, Tape(num_batches, training=True)
        return passes.forward(x, ctx.tape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logit: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        by_x = ctx.passes.backward(by_logit, by_entropy.item(), ctx.tape)
        gradients = ctx.tape.gradients
        return by_x, None, None, *(gradients.get(parameter) for parameter in ctx.passes.parameters)


def _join(by_decision: Tensor, by_hidden: Tensor | None) -> Tensor:
    """Concatenate the gradients of both halves of a transformer's output, [2 N, R]."""
    return torch.cat([by_decision, torch.zeros_like(by_decision) if by_hidden is None else by_hidden])


def _whole_and_rest(x: Tensor, virtual_batch_size: int) -> list[tuple[Tensor, int]]:
    """Split columns [D, R] as `Tensor.chunk` does: ([D, B · V], B), then a smaller rest if any."""
    num_rows = x.shape[1]
    size = math.ceil(num_rows / math.ceil(num_rows / virtual_batch_size))
    num_whole = num_rows // size
    if num_whole * size == num_rows:
        return [(x, num_whole)]
    return [
        (x[:, : num_whole * size].contiguous(), num_whole),
        (x[:, num_whole * size :].contiguous(), 1),
    ]
