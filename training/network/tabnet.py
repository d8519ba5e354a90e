"""TabNet with one output: modules, training pass and scoring pass.

Arik and Pfister 2019, "TabNet: Attentive Interpretable Tabular Learning" (arXiv:1908.07442). The
modules have the names that the modules of the package pytorch_tabnet have, so state dicts fit both.
All virtual batches are normalised at once, a few steps of Newton's method find the thresholds of
the masks (`serve.model.masks` derives them), and the backward pass is written by hand. Both passes
therefore read memory few times, and autograd sees one function.

Letters: R rows, B virtual batches of V rows each, D0 dense columns, K1 embedded categories, D
network inputs after the embedding, G = D0 + K1 columns that the masks choose among, N the width of
a decision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from serve.contract.errors import TabrankError
from serve.contract.validation import number, one_of, whole
from training.network.layers import Attention, Tape, Transformer, draw_weights, gated_linear

# Momentum of the batch norm over the network's inputs. With 0.01, as in pytorch_tabnet, its
# statistics lag by hundreds of steps: after six epochs of 16,000 rows the validation logloss was
# 0.41, and 0.27 with 0.1.
INPUT_MOMENTUM = 0.1
# Largest whole number of a configuration.
MOST = 2**31


@dataclass(frozen=True)
class NetworkConfig:
    """Shape and regularisation of the network; `width` is both n_d and n_a of the paper."""

    width: int = 32
    n_steps: int = 2
    gamma: float = 1.3
    mask_type: Literal["entmax", "sparsemax"] = "entmax"
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


class TabNet(nn.Module):
    """TabNet on D0 dense columns and one embedding for each (cardinality, size) of `tables`."""

    def __init__(self, num_dense: int, tables: Sequence[tuple[int, int]], config: NetworkConfig) -> None:
        super().__init__()
        self.embedder = Embedder(num_dense, tables)
        self.tabnet = DecisionSteps(num_dense, [size for _, size in tables], config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [R, D0 + K1] to (logit [R], sparsity), see `DecisionSteps.forward`."""
        logit, sparsity = self.tabnet(self.embedder(x))
        return logit, sparsity

    @torch.no_grad()
    def explained(self, x: Tensor) -> Tensor:
        """Return the sum of the masks [R, G] over the steps, weighted by each step's decision."""
        total: Tensor = self.tabnet.explained(self.embedder(x)).T
        return total


class Embedder(nn.Module):
    """Embedding tables of the last columns of x."""

    _places: Tensor

    def __init__(self, num_dense: int, tables: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.num_dense = num_dense
        self.embeddings = nn.ModuleList(nn.Embedding(*shape) for shape in tables)
        places, end = [], 0
        for k, (cardinality, size) in enumerate(tables):
            places += [(k, size, end + j) for j in range(size)]
            end += cardinality * size
        self.register_buffer("_places", torch.tensor(places, dtype=torch.int64).view(-1, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [R, D0 + K1] to [D, R] with one look-up for all tables."""
        dense, index = x[:, : self.num_dense].T, x[:, self.num_dense :].T
        if not len(self.embeddings):
            return dense.contiguous()
        flat = torch.cat([weight.reshape(-1) for weight in self.embeddings.parameters()])
        table, stride, start = self._places.T
        place = index.long().index_select(0, table).mul_(stride[:, None]).add_(start[:, None])
        return torch.cat([dense, flat.gather(0, place.view(-1)).view(place.shape)])


class DecisionSteps(nn.Module):
    """The steps of TabNet on D embedded inputs, and the sum of their decisions as one logit."""

    _spread: Tensor | None
    _share: Tensor | None

    def __init__(self, num_dense: int, sizes: Sequence[int], config: NetworkConfig) -> None:
        """Create the network for D0 = `num_dense` and embeddings of these sizes."""
        super().__init__()
        self.config = config
        # Never used: a part of the state dicts alone.
        self.initial_bn = nn.BatchNorm1d(num_dense + sum(sizes)).requires_grad_(False)
        self.encoder = _Encoder(num_dense + sum(sizes), num_dense + len(sizes), config)
        self.final_mapping = nn.Linear(config.width, 1, bias=False)
        draw_weights(self.final_mapping, gain=1.0)
        # The inputs of an embedded category share the mask of one column.
        columns = [*range(num_dense), *(num_dense + k for k, size in enumerate(sizes) for _ in range(size))]
        shares = [1.0] * num_dense + [1.0 / size for size in sizes for _ in range(size)]
        # [D], the column of each input, and [D, 1], the share of its mask that the input receives.
        self.register_buffer("_spread", torch.tensor(columns) if any(n != 1 for n in sizes) else None, False)
        self.register_buffer("_share", torch.tensor(shares)[:, None] if sizes else None, False)
        self.factor = self.encoder.initial_splitter.factor
        input_norm = set(self.encoder.initial_bn.parameters())
        self._learned = tuple(p for p in self.parameters() if p.requires_grad and p not in input_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map embedded inputs [D, R] to (logit [R], sparsity).

        The sparsity is the mean entropy of the masks over steps and rows: 0 where each step uses
        one column. In training mode the running statistics are updated once for each virtual batch,
        in order. In eval mode no gradient is kept, and the sparsity is 0.
        """
        if not self.training:
            with torch.no_grad():
                return self.compute(self._normed(x), Tape(1, training=False))
        found = [
            _Differentiable.apply(part, self, num_batches, *self._learned)  # type: ignore[no-untyped-call]
            for part, num_batches in _whole_and_rest(self._normed(x), self.config.virtual_batch_size)
        ]
        negative_entropy = sum(entropy for _, entropy in found)
        sparsity = -negative_entropy / (x.shape[1] * self.config.n_steps)
        return torch.cat([logit for logit, _ in found]), sparsity

    def explained(self, x: Tensor) -> Tensor:
        """Return the sum [G, R] of `TabNet.explained` for embedded inputs [D, R]."""
        total = x.new_zeros(())
        for mask, _, decision in self._steps(self._normed(x), Tape(1, training=False)):
            total = total + mask * (self.factor * decision).relu().sum(0)
        return total

    def _normed(self, x: Tensor) -> Tensor:
        """Apply the input norm, over all rows, to [D, R]."""
        normed: Tensor = self.encoder.initial_bn(x[None])[0]
        return normed

    def compute(self, x: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
        """Map normalised inputs [D, R] to (logit [R], sum of M · log M over all steps and rows)."""
        total = x.new_zeros(self.config.width, x.shape[1])
        negative_entropy = x.new_zeros(())
        for mask, logarithm, decision in self._steps(x, tape):
            total += decision.relu()
            if logarithm is not None:
                negative_entropy += torch.dot(mask.view(-1), logarithm.view(-1))
        tape.save(total)
        tape.update_statistics(x.shape[1] // tape.num_batches)
        return (self.factor * self.final_mapping.weight @ total)[0], negative_entropy

    def _steps(self, x: Tensor, tape: Tape) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Yield (mask M [G, R], log M in training, decision [N, R]) of each step."""
        width, gamma = self.config.width, self.config.gamma
        hidden = self.encoder.initial_splitter.forward(x, tape)[width:]
        shared_out = x if self._share is None else x * self._share
        prior: Tensor | None = None
        for attention, transformer in self.encoder.steps:
            chosen, logarithm = attention.forward(hidden, prior, tape)
            seen = chosen if self._spread is None else chosen.index_select(0, self._spread)
            out = transformer.forward(seen * shared_out, tape)
            decision, hidden = out[:width], out[width:]
            tape.save(prior, chosen, seen, decision)
            yield chosen, logarithm, decision
            prior = gamma - chosen if prior is None else (gamma - chosen).mul_(prior)
        tape.save(shared_out)

    def backward(self, by_logit: Tensor, by_entropy: float, tape: Tape) -> Tensor:
        """Return the gradient of x from those of the outputs; put the parameters' on the tape."""
        gamma = self.config.gamma
        (total,), (shared_out,) = tape.load(), tape.load()
        weight = self.factor * self.final_mapping.weight
        tape.add(self.final_mapping.weight, by_logit[None], total.T, self.factor)
        by_total = weight.T * by_logit
        by_shared = torch.zeros_like(shared_out)
        # Gradient of the hidden half of a step; nothing reads the hidden half of the last step.
        by_hidden: Tensor | None = None
        by_prior: Tensor | None = None
        for attention, transformer in reversed(self.encoder.steps):
            prior, chosen, seen, decision = tape.load()
            by_decision = torch.ops.aten.threshold_backward(by_total, decision, 0)
            by_seen = transformer.backward(_join(by_decision, by_hidden), tape)
            by_shared.addcmul_(by_seen, seen)
            by_chosen = by_seen.mul_(shared_out)
            if self._spread is not None:
                # Sum over the inputs [D, R] of each column: [G, R].
                by_chosen = torch.zeros_like(chosen).index_add_(0, self._spread, by_chosen)
            # The next step's prior is (gamma - chosen) · prior.
            if by_prior is not None:
                by_chosen -= by_prior if prior is None else by_prior * prior
            by_hidden, by_own = attention.backward(by_chosen, by_entropy, tape)
            if by_own is not None and by_prior is not None:
                by_own.addcmul_(gamma - chosen, by_prior)
            by_prior = by_own
        assert by_hidden is not None
        by_x = self.encoder.initial_splitter.backward(_join(torch.zeros_like(by_total), by_hidden), tape)
        tape.sum_norms()
        return by_x.add_(by_shared if self._share is None else by_shared.mul_(self._share))


class _Encoder(nn.Module):
    """Input norm, first transformer, and an attention and a transformer for each step."""

    def __init__(self, num_inputs: int, num_columns: int, config: NetworkConfig) -> None:
        super().__init__()
        hidden, momentum = 2 * config.width, config.momentum
        self.initial_bn = nn.BatchNorm1d(num_inputs, momentum=INPUT_MOMENTUM)
        shared = [gated_linear(hidden if k else num_inputs, hidden) for k in range(config.n_shared)]

        def transformer() -> Transformer:
            return Transformer(shared, config.n_independent, num_inputs, hidden, momentum)

        self.initial_splitter = transformer()
        factor = self.initial_splitter.factor

        def attention() -> Attention:
            fc = nn.Linear(config.width, num_columns, bias=False)
            return Attention(fc, momentum, factor, config.mask_type)

        # pytorch_tabnet draws the weights of a step in this order, and lists its parts so.
        parts = [(transformer(), attention()) for _ in range(config.n_steps)]
        self.feat_transformers = nn.ModuleList(following for following, _ in parts)
        self.att_transformers = nn.ModuleList(chooser for _, chooser in parts)
        self.steps = [(chooser, following) for following, chooser in parts]


class _Differentiable(torch.autograd.Function):
    """`DecisionSteps.compute` and `DecisionSteps.backward` as one autograd function."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, network: DecisionSteps, num_batches: int, *learned: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.network, ctx.learned = network, learned
        ctx.tape = Tape(num_batches, training=True)
        return network.compute(x, ctx.tape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logit: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        by_x = ctx.network.backward(by_logit, by_entropy.item(), ctx.tape)
        return by_x, None, None, *(ctx.tape.gradients.get(parameter) for parameter in ctx.learned)


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
