"""TabNet with an output for each outcome.

It follows Arik and Pfister 2019, "TabNet: Attentive Interpretable Tabular Learning"
(arXiv:1908.07442). The modules have the same names as in the package pytorch_tabnet, so that state
dicts fit both.

In shapes, R is the number of rows, D0 of dense columns, K1 of embedded categories, D of inputs
after the embedding, G = D0 + K1 of columns among which the masks choose, and O of outcomes. N is
the width of a decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from training.network.layers import Attention, NetworkConfig, Transformer, draw_weights, gated_linears

# The momentum of the batch norm over the network's inputs. With 0.01, as in pytorch_tabnet, its
# statistics lag by hundreds of steps. After six epochs of 16,000 rows, the validation logloss was
# 0.41 with that, and 0.27 with 0.1.
INPUT_MOMENTUM = 0.1
# This is added to a mask before the logarithm, which is infinite at 0.
LEAST = 1e-15


class TabNet(nn.Module):
    """TabNet on D0 dense columns and one embedding for each (cardinality, size) of `tables`."""

    def __init__(
        self, num_dense: int, tables: Sequence[tuple[int, int]], config: NetworkConfig, num_outcomes: int = 1
    ) -> None:
        super().__init__()
        self.embedder = Embedder(num_dense, tables)
        self.tabnet = DecisionSteps(num_dense, [size for _, size in tables], config, num_outcomes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [R, D0 + K1] to the logits [R, O] and the sparsity (see `DecisionSteps.forward`).

        The loss to minimise is logloss + lambda_sparse · sparsity.
        """
        logit, sparsity = self.tabnet(self.embedder(x))
        return logit, sparsity


class Embedder(nn.Module):
    """The embedding tables for the last columns of x, which are categories."""

    def __init__(self, num_dense: int, tables: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.num_dense = num_dense
        self.embeddings = nn.ModuleList(nn.Embedding(*shape) for shape in tables)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [R, D0 + K1] to [D, R]."""
        dense, index = x[:, : self.num_dense], x[:, self.num_dense :].long()
        pairs = zip(self.embeddings, index.unbind(1), strict=True)
        return torch.cat([dense.T, *(table(column).T for table, column in pairs)])


class DecisionSteps(nn.Module):
    """The steps of TabNet on D embedded inputs, and the sum of their decisions as logits."""

    _spread: Tensor
    _share: Tensor

    def __init__(
        self, num_dense: int, sizes: Sequence[int], config: NetworkConfig, num_outcomes: int
    ) -> None:
        """Create the network for D0 = `num_dense` and embeddings of these sizes."""
        super().__init__()
        self.config = config
        # This is never used, but pytorch_tabnet has it in its state dicts.
        self.initial_bn = nn.BatchNorm1d(num_dense + sum(sizes)).requires_grad_(False)
        self.encoder = _Encoder(num_dense + sum(sizes), num_dense + len(sizes), config)
        self.final_mapping = nn.Linear(config.width, num_outcomes, bias=False)
        draw_weights(self.final_mapping, gain=1.0)
        # All inputs of an embedded category share the mask of one column.
        widths = torch.tensor([1] * num_dense + list(sizes))
        # [D] is the column of each input. [D, 1] is the share of the column's mask that it
        # receives.
        self.register_buffer("_spread", torch.arange(len(widths)).repeat_interleave(widths), False)
        self.register_buffer("_share", (1.0 / widths).repeat_interleave(widths)[:, None], False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map embedded inputs [D, R] to the logits [R, O] and the sparsity.

        The sparsity is the mean entropy of the masks over steps and rows. It is 0 if each step uses
        a single column.
        """
        total, negative_entropy = x.new_zeros(()), x.new_zeros(())
        for mask, decision in self.steps(x):
            total = total + decision
            negative_entropy = negative_entropy + (mask * (mask + LEAST).log()).sum()
        sparsity = -negative_entropy / (x.shape[1] * self.config.n_steps)
        return (self.final_mapping.weight @ total).T, sparsity

    def steps(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (mask [G, R], rectified decision [N, R]) of each step, for inputs [D, R]."""
        width, encoder = self.config.width, self.encoder
        x = encoder.initial_bn(x[None])[0]
        shared_out = x * self._share
        hidden = encoder.initial_splitter(x)[width:]
        prior: Tensor | None = None
        for attention, transformer in zip(encoder.att_transformers, encoder.feat_transformers, strict=True):
            mask = attention(hidden, prior)
            seen = mask.index_select(0, self._spread)
            decision, hidden = transformer(seen * shared_out).split(width)
            yield mask, decision.relu()
            unused = self.config.gamma - mask
            prior = unused if prior is None else unused * prior


class _Encoder(nn.Module):
    """The input norm, the first transformer, and an attention and a transformer for each step."""

    def __init__(self, num_inputs: int, num_columns: int, config: NetworkConfig) -> None:
        super().__init__()
        self.initial_bn = nn.BatchNorm1d(num_inputs, momentum=INPUT_MOMENTUM)
        shared = list(gated_linears(range(config.n_shared), num_inputs, config))
        self.initial_splitter = Transformer(shared, num_inputs, config)
        # pytorch_tabnet draws the weights of a step in this order, and has its parts in these
        # lists.
        self.feat_transformers, self.att_transformers = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.n_steps):
            self.feat_transformers.append(Transformer(shared, num_inputs, config))
            self.att_transformers.append(Attention(num_columns, config))
