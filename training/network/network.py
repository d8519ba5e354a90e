"""Trainable network: pytorch_tabnet's TabNet (Arik & Pfister 2021) on the inputs of an encoder.

Letters: R rows, F numeric columns, I missing indicators, V multi-hot columns, K1 single category
columns, D0 = F + I + V, E embedded columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_tabnet.tab_network import TabNet
from torch import Tensor, nn

from serve.contract.errors import TabrankError
from serve.model.encoder import CLIP, Encoder
from training.network.forward import Passes


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
        if self.mask_type not in ("entmax", "sparsemax"):
            raise TabrankError(f"network: mask_type {self.mask_type!r} must be entmax or sparsemax")
        for name, least in (("width", 1), ("n_steps", 1), ("virtual_batch_size", 2)):
            if getattr(self, name) < least:
                raise TabrankError(f"network: {name} {getattr(self, name)} must be {least} or more")
        if min(self.n_independent, self.n_shared) < 0 or self.n_independent + self.n_shared == 0:
            raise TabrankError(
                f"network: n_independent {self.n_independent} and n_shared {self.n_shared} must not be "
                "negative nor both 0"
            )
        if not self.gamma >= 1.0:
            raise TabrankError(f"network: gamma {self.gamma} must be 1 or more")


def shape(encoder: Encoder, config: NetworkConfig) -> dict[str, Any]:
    """Return the arguments that shape pytorch_tabnet's network and its classifier alike."""
    num_inputs, single = len(encoder.input_names), encoder.single
    return {
        "n_d": config.width,
        "n_a": config.width,
        "n_steps": config.n_steps,
        "gamma": config.gamma,
        "cat_idxs": list(range(num_inputs - len(single), num_inputs)),
        "cat_dims": list(encoder.cardinalities),
        "cat_emb_dim": [column.embedding for column in single],
        "n_independent": config.n_independent,
        "n_shared": config.n_shared,
        "mask_type": config.mask_type,
    }


class Network(nn.Module):
    """TabNet with one output on the columns of `encoder.input_names`.

    Its inputs come from `encoder.encode`; an embedded category is one column. Export the state dict
    `network.tabnet.state_dict()`.
    """

    mean: Tensor
    scale: Tensor
    logged: Tensor
    indicators: Tensor
    _spread: Tensor | None
    _share: Tensor | None
    _places: Tensor

    def __init__(self, encoder: Encoder, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        num_inputs, num_single = len(encoder.input_names), len(encoder.single)
        if num_inputs == 0:
            raise TabrankError("network: the encoder has no columns; give the surface at least one feature")
        self.num_dense = num_inputs - num_single
        self.tabnet = TabNet(
            num_inputs,
            1,
            **shape(encoder, config),
            virtual_batch_size=config.virtual_batch_size,
            momentum=config.momentum,
            group_attention_matrix=torch.eye(num_inputs),
        )
        # pytorch_tabnet never calls initial_bn: it gets no gradient, and weight decay would move
        # it.
        self.tabnet.tabnet.initial_bn.requires_grad_(False)
        # Map each input to its column: the inputs of an embedded category share one mask.
        share, spread = self.tabnet.embedder.embedding_group_matrix.max(dim=0)
        is_spread = len(spread) != num_inputs
        self.register_buffer("_spread", spread if is_spread else None, persistent=False)
        self.register_buffer("_share", share[:, None] if is_spread else None, persistent=False)
        self._passes = Passes(self.tabnet.tabnet, self._spread, self._share)
        columns = encoder.numeric
        places, end = [], 0
        for k, (column, cardinality) in enumerate(zip(encoder.single, encoder.cardinalities, strict=True)):
            places += [(k, column.embedding, end + j) for j in range(column.embedding)]
            end += cardinality * column.embedding
        for name, values in (
            ("_places", torch.tensor(places, dtype=torch.int64).view(-1, 3)),
            ("mean", torch.tensor([c.mean for c in columns], dtype=torch.float32)),
            ("scale", torch.tensor([1.0 / c.std for c in columns], dtype=torch.float32)),
            ("logged", torch.tensor([c.transform == "log1p" for c in columns], dtype=torch.bool)),
            ("indicators", torch.tensor(encoder.indicators, dtype=torch.int64)),
        ):
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def inputs(self, numeric: Tensor, hot: Tensor, index: Tensor) -> Tensor:
        """Transform encoded rows (f32 [R, F], f32 [R, V], i64 [R, K1]) to x f32 [R, D0 + K1].

        Numbers are transformed, standardised and clipped; missing ones are 0. The transform is not
        learned, so it runs once for each row.
        """
        missing = torch.isnan(numeric)
        logged = torch.sign(numeric) * torch.log(1.0 + torch.abs(numeric))
        value = torch.where(missing, self.mean, torch.where(self.logged, logged, numeric))
        value = torch.clamp((value - self.mean) * self.scale, -CLIP, CLIP)
        return torch.cat([value, missing[:, self.indicators].float(), hot, index.float()], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [R, D0 + K1] to (logit [R], sparsity).

        The loss to minimise is logloss + lambda_sparse · sparsity. `sparsity` is the mean entropy
        of the masks over steps and rows: 0 where each step uses one column.
        """
        if self.training:
            logit, negative_entropy = self._passes(self._normed(x))
            return logit, -negative_entropy
        output, negative_entropy = self.tabnet.tabnet(self._embedded(x).T.contiguous())
        return output[:, 0], -negative_entropy

    @torch.no_grad()
    def logit(self, x: Tensor) -> Tensor:
        """Return the logit [R] of `forward`, up to rounding, in less time."""
        return self._passes(self._normed(x))[0]

    def _normed(self, x: Tensor) -> Tensor:
        """Apply the TabNet's input norm, over all rows, to x; return [D, R], columns first."""
        normed: Tensor = self.tabnet.tabnet.encoder.initial_bn(self._embedded(x)[None])[0]
        return normed

    def _embedded(self, x: Tensor) -> Tensor:
        """Do the work of tabnet.embedder with one look-up for all tables; return [D, R]."""
        dense, index = x[:, : self.num_dense].T, x[:, self.num_dense :].T
        tables = getattr(self.tabnet.embedder, "embeddings", ())
        if not len(tables):
            return dense.contiguous()
        flat = torch.cat([table.weight.reshape(-1) for table in tables])
        table, stride, start = self._places.T
        place = index.long().index_select(0, table).mul_(stride[:, None]).add_(start[:, None])
        found = flat.gather(0, place.view(-1)).view(place.shape)
        return torch.cat([dense, found])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        """Move the group matrices too, because pytorch_tabnet does not register them as buffers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for owner, name in (
            (self.tabnet.embedder, "embedding_group_matrix"),
            (self.tabnet.tabnet.encoder, "group_attention_matrix"),
        ):
            setattr(owner, name, fn(getattr(owner, name)))
        self._passes = Passes(self.tabnet.tabnet, self._spread, self._share)
        return self
