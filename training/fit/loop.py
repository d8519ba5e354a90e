"""Training loop in plain torch: minibatches, the best epoch, and a state to resume from.

It runs in one process, or as each rank of a torch.distributed group that the caller has opened.

In shapes, N is the number of rows, b of rows in one rank's batch, R of rows in general, K of single
category columns, and O of outcomes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from serve.contract.errors import TabrankError
from serve.model.encoder import FIRST_SEEN, UNSEEN, Encoder
from serve.storage.atomic_files import write_whole
from training.evaluation.slates import auc
from training.network.layers import GhostBatchNorm
from training.network.network import Inputs, Network, NetworkConfig, flat


class Diverged(TabrankError):
    """Training diverged with one configuration. Others may succeed on the same rows."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of a training. The learning rate warms up, and then falls along a cosine."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    # Passes over the training rows.
    epochs: int = 6
    # Rows in one step, of all workers together.
    batch_size: int = 1024
    learning_rate: float = 0.02
    weight_decay: float = 1e-5
    # The share of all steps during which the learning rate rises.
    warmup: float = 0.05
    # The learning rate of the last step, as a share of `learning_rate`.
    final_rate: float = 0.01
    # Gradients with a larger norm are scaled down to this one.
    clip_norm: float = 1.0
    seed: int = 0
    num_workers: int = 1
    # This share of the known categories is replaced by "unseen", so that its embedding is trained.
    category_dropout: float = 0.01
    # Whether to keep the weights of the best epoch rather than those of the last.
    restore_best: bool = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise TabrankError(f"fit: {name} {getattr(self, name)} must be {least} or more")


class Epoch(TypedDict):
    """One line of a run's history."""

    epoch: int  # from 1
    # The sum of the outcomes' loglosses.
    train_logloss: float
    valid_logloss: float
    # The AUC of the primary outcome; None if the validation rows lack one of the labels.
    valid_auc: float | None
    # The learning rate of the epoch's last step.
    learning_rate: float
    seconds: float


@dataclass
class State:
    """State from which a run resumes after any epoch. On disk it is a safetensors file."""

    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    # The TabNet's state dicts after the last and after the best epoch.
    last: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    # AdamW's moments of all parameters, which are one flat tensor, by name.
    optimiser: dict[str, Tensor] = field(default_factory=dict)

    def kept(self, config: FitConfig) -> dict[str, Tensor]:
        """Return the TabNet's state dict that the run keeps: of the best or of the last epoch."""
        return self.best if config.restore_best else self.last

    def save(self, path: Path) -> None:
        """Write the state to a file. An existing file is replaced as a whole."""
        parts = ("last", "best", "optimiser")
        tensors = {f"{part}/{name}": t for part in parts for name, t in getattr(self, part).items()}
        about = {"history": self.history, "best_epoch": self.best_epoch}
        write_whole(path, save(tensors, metadata={"state": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a state that `save` wrote."""
        with safe_open(path, framework="pt") as file:
            state = cls(**json.loads(file.metadata()["state"]))
            for key in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                part, name = key.split("/", 1)
                getattr(state, part)[name] = file.get_tensor(key)
        return state


def run(
    train: Inputs,
    valid: Inputs,
    encoder: Encoder,
    config: FitConfig,
    *,
    state: State | None = None,
    after_epoch: Callable[[State], None] = lambda state: None,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> State:
    """Train from `state` on until `config.epochs` are done, and return the final state.

    Each rank of an open torch.distributed group calls it with the same arguments. A rank takes its
    part of every batch, so that all ranks together take the same steps as one process would.

    The first rank calls `after_epoch`. This must save or use the state before it returns, because
    the next epoch changes it in place.
    """
    state = state or State()
    fit = _Fit(train.to(device), valid.to(device), encoder, config, state)
    for epoch in range(len(state.history) + 1, config.epochs + 1):
        fit.train_epoch(epoch)
        if fit.rank == 0:
            after_epoch(state)
    return state


class _Fit:
    """One run on one rank: the network, the optimiser, and the rank's part of the rows."""

    def __init__(
        self, train: Inputs, valid: Inputs, encoder: Encoder, config: FitConfig, state: State
    ) -> None:
        self.train, self.valid, self.config, self.state = train, valid, config, state
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.num_single = len(encoder.single)
        self.device = device = valid.x.device
        self.batch = _batch(len(train), self.world, config)
        self.num_steps = len(train) // (self.batch * self.world)
        torch.manual_seed(config.seed)
        self.network = Network(encoder, config.network, valid.label.shape[1]).to(device)
        if state.last:
            self.network.tabnet.load_state_dict(state.last)
        if self.world > 1:
            # Statistics of batch norms are averaged once per epoch, not at each step. A ghost batch
            # norm updates them once per virtual batch. A rank sees only its own virtual batches, so
            # one update by it represents those of all ranks.
            for norm in (m.bn for m in self.network.modules() if isinstance(m, GhostBatchNorm)):
                norm.momentum = 1 - (1 - norm.momentum) ** self.world
        self.parameter = flat(p for p in self.network.parameters() if p.requires_grad)
        self.optimiser = torch.optim.AdamW(
            [self.parameter], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        for name, value in state.optimiser.items():
            self.optimiser.state[self.parameter][name] = value.to(device)

    def train_epoch(self, epoch: int) -> None:
        """Train one pass over the rows, evaluate, and update `state`."""
        started = time.perf_counter()
        self.network.train()
        losses = [self._step(rows, dropped, step) for step, (rows, dropped) in self._batches(epoch)]
        train_logloss = self._sum(torch.stack(losses).double().mean()).item() / self.world
        for name, buffer in self.network.tabnet.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                self._average(buffer)
        valid_logloss, valid_auc = self._evaluate()
        line: Epoch = {
            "epoch": epoch,
            "train_logloss": train_logloss,
            "valid_logloss": valid_logloss,
            "valid_auc": valid_auc,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
        }
        self._record(line)

    def _batches(self, epoch: int) -> Iterator[tuple[int, tuple[Inputs, Tensor]]]:
        """Yield (step, (this rank's rows, bool [b, K] which categories to drop)) of an epoch.

        All random numbers depend on the seed and the epoch alone, so that neither the number of
        ranks nor an interruption changes them.
        """
        seed = self.config.seed * 1_000_003 + epoch
        chance = torch.Generator().manual_seed(seed)
        size = self.batch * self.world
        mine = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        for number, rows in enumerate(self.train.batches(size, mine, seed)):
            drawn = torch.rand(size, self.num_single, generator=chance)[mine]
            yield (epoch - 1) * self.num_steps + number, (rows, drawn < self.config.category_dropout)

    def _step(self, rows: Inputs, dropped: Tensor, step: int) -> Tensor:
        """Take one optimiser step and return the batch's logloss."""
        rows, dropped = rows.to(self.device), dropped.to(self.device)
        x, label = rows.x, rows.label
        index = x[:, x.shape[1] - self.num_single :]
        index.masked_fill_(dropped & (index >= FIRST_SEEN), UNSEEN)
        rate = learning_rate(step, self.num_steps * self.config.epochs, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        logit, sparsity = self.network.tabnet(x)
        logloss = self._logloss(as_shown(logit, rows.examination), label)
        # Set the gradient to zero in place, as the parameters' gradients are views of it.
        self.optimiser.zero_grad(set_to_none=False)
        (logloss + self.config.network.lambda_sparse * sparsity).backward()
        self._average(self.parameter.grad)
        norm = nn.utils.clip_grad_norm_(self.parameter, self.config.clip_norm)
        # The gradient is already averaged, so all ranks raise this in the same step.
        if not torch.isfinite(norm):
            raise Diverged(f"fit: the gradient became {norm}; lower learning_rate {rate:.3g}")
        self.optimiser.step()
        return logloss.detach()

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float | None]:
        """Return the logloss and AUC of the validation rows. Each rank scores a part of them."""
        self.network.eval()
        num_rows = len(self.valid)
        logit = torch.zeros_like(self.valid.label)
        mine = slice(*(num_rows * rank // self.world for rank in (self.rank, self.rank + 1)))
        logit[mine] = self.network.logit(self.valid.x[mine])
        logit, label = self._sum(logit).double(), self.valid.label.double()
        logloss = self._logloss(as_shown(logit, self.valid.examination), label)
        known = ~torch.isnan(label[:, 0])
        return logloss.item(), auc(label[known, 0].cpu().numpy(), logit[known, 0].cpu().numpy())

    def _logloss(self, logit: Tensor, label: Tensor) -> Tensor:
        """Return the sum of the outcomes' loglosses for logits [R, O].

        For a label that is a share, the logloss is its cross-entropy (Papke and Wooldridge 1996,
        "Econometric methods for fractional response variables"). Unknown labels do not count. Rare
        outcomes need no higher weight; see "Losses of several outcomes" in docs/quality.md.
        """
        known = ~torch.isnan(label)
        losses = binary_cross_entropy_with_logits(logit, torch.nan_to_num(label), reduction="none")
        means = (losses * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
        return means.sum()

    def _record(self, line: Epoch) -> None:
        """Append an epoch to the state, and keep its weights if it is the best so far."""
        state, epoch = self.state, line["epoch"]
        best = min((past["valid_logloss"] for past in state.history), default=math.inf)
        state.history.append(line)
        state.last = {name: t.detach().cpu().clone() for name, t in self.network.tabnet.state_dict().items()}
        if line["valid_logloss"] < best:
            state.best_epoch = epoch
            state.best = {name: t.clone() for name, t in state.last.items()}
        moments = self.optimiser.state[self.parameter]
        state.optimiser = {name: value.detach().cpu().clone() for name, value in moments.items()}

    def _average(self, value: Tensor | None) -> None:
        """Replace a value in place by its mean over all ranks."""
        if self.world > 1 and value is not None:
            dist.all_reduce(value)
            value /= self.world

    def _sum(self, value: Tensor) -> Tensor:
        """Return the sum of a value over all ranks."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value


def as_shown(logit: Tensor, examination: Tensor) -> Tensor:
    """Map logits [R, O] of P(label | looked at) to logits of the label as shown, [R, O].

    By the position-based model, P(label as shown) = θ · P(label | looked at), where θ [R, O] is the
    `examination` of the row's position, above 0 and at most 1 (Craswell et al. 2008, "An
    experimental comparison of click position-bias models"). θ is estimated once, before any network
    is trained (`training.examination`). The network learns the other factor. Only the network is
    exported, so it ranks as if positions had no effect.
    """
    # θσ / (1 - θσ) = θ e^logit / (1 + (1 - θ) e^logit)
    theta = examination.to(logit.dtype)
    return logit + torch.log(theta) - softplus(logit + torch.log1p(-theta))


def learning_rate(step: int, num_steps: int, config: FitConfig) -> float:
    """Return the learning rate of a step, from 0: a linear warm-up, followed by half a cosine."""
    warm = config.warmup * num_steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    falling = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(num_steps - 1 - warm, 1)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * falling)


def _batch(num_rows: int, world: int, config: FitConfig) -> int:
    """Return the number of rows of one rank in one step.

    They are whole virtual batches, so that no virtual batch has a single row.
    """
    batch = min(config.batch_size, num_rows) // world
    if batch < 2:
        raise TabrankError(
            f"fit: {num_rows} training rows in batches of {config.batch_size} are too few for {world} "
            "workers; give more rows, or lower num_workers"
        )
    virtual = config.network.virtual_batch_size
    return batch if batch < virtual else batch - batch % virtual
