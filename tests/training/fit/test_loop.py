import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from serve.contract.errors import TabrankError
from serve.model.encoder import UNSEEN, Encoder, MultiColumn, NumericColumn, SingleColumn
from training.evaluation.slates import auc
from training.fit.loop import Diverged, FitConfig, State, as_shown, learning_rate, run
from training.network.network import Inputs, Network, NetworkConfig, inputs

ENCODER = Encoder(
    numeric=(NumericColumn("a", indicator=True), NumericColumn("b"), NumericColumn("c", transform="log1p")),
    single=(SingleColumn("topic", ("music", "news", "sport"), embedding=2),),
    multi=(MultiColumn("tags", 2, ("x", "y")),),
)
CONFIG = FitConfig(
    network=NetworkConfig(width=8, n_steps=2, n_independent=2, n_shared=2, virtual_batch_size=64),
    epochs=6,
    batch_size=256,
    category_dropout=0.05,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    # Small batches gain nothing from more threads, which would wait for each other.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(num_rows: int, seed: int) -> Inputs:
    """Return rows whose label depends on a product of two numbers and on the topic."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(num_rows, 3)).astype(np.float32)
    index = rng.integers(2, 5, size=(num_rows, 1))
    logit = 4 * np.sign(numeric[:, 0] * numeric[:, 1]) + (index[:, 0] == 3) - 1
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    numeric[rng.random(num_rows) < 0.1, 0] = np.nan
    hot = rng.integers(0, 2, size=(num_rows, 2)).astype(np.float32)
    return inputs(ENCODER, (numeric, hot, index), label[:, None], np.ones((num_rows, 1)))


def first(rows: Inputs, num_rows: int) -> Inputs:
    return Inputs(rows.x[:num_rows], rows.label[:num_rows], rows.examination[:num_rows])


@pytest.fixture(scope="module")
def train() -> Inputs:
    return made(3_000, seed=1)


@pytest.fixture(scope="module")
def valid() -> Inputs:
    return made(1_000, seed=2)


@pytest.fixture(scope="module")
def trained(train, valid) -> State:
    return run(train, valid, ENCODER, CONFIG)


@pytest.fixture(scope="module")
def upside_down() -> Inputs:
    rows = made(500, seed=3)
    return replace(rows, label=1 - rows.label)


@pytest.fixture(scope="module")
def worsened(train, upside_down) -> State:
    """Run a training whose validation loss grows."""
    return run(train, upside_down, ENCODER, CONFIG)


def is_same(left: State, right: State) -> bool:
    parts = [(getattr(left, part), getattr(right, part)) for part in ("last", "best", "optimiser")]
    histories = [[line | {"seconds": 0} for line in state.history] for state in (left, right)]
    return (
        histories[0] == histories[1]
        and left.best_epoch == right.best_epoch
        and all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in parts)
    )


def test_a_non_linear_label_is_learned(trained, valid):
    share = valid.label.mean().item()
    base = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert trained.history[-1]["valid_logloss"] < 0.75 * base
    assert trained.history[-1]["valid_auc"] > 0.85
    assert trained.history[-1]["learning_rate"] == pytest.approx(CONFIG.learning_rate * CONFIG.final_rate)


def test_the_same_seed_gives_the_same_run(train, valid):
    short = replace(CONFIG, epochs=2)
    first = run(train, valid, ENCODER, short)
    assert is_same(first, run(train, valid, ENCODER, short))
    assert not is_same(first, run(train, valid, ENCODER, replace(short, seed=1)))


@pytest.mark.parametrize(("rows", "whole", "cut"), [("valid", "trained", 3), ("upside_down", "worsened", 2)])
def test_a_run_that_goes_on_from_a_file_ends_as_one_that_was_never_cut(
    train, rows, whole, cut, tmp_path, request
):
    held, uncut = request.getfixturevalue(rows), request.getfixturevalue(whole)

    def save_and_cut(state: State) -> None:
        if len(state.history) == cut:
            state.save(tmp_path / "state.safetensors")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(train, held, ENCODER, CONFIG, after_epoch=save_and_cut)
    state = State.load(tmp_path / "state.safetensors")
    assert len(state.history) == cut
    assert is_same(run(train, held, ENCODER, CONFIG, state=state), uncut)


def test_the_moments_of_all_weights_are_one_tensor(trained):
    network = Network(ENCODER, CONFIG.network)
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert {name: t.numel() for name, t in trained.optimiser.items()} == {
        "step": 1,
        "exp_avg": learned,
        "exp_avg_sq": learned,
    }


def test_a_state_reads_back_from_its_file_as_it_was(trained, tmp_path):
    trained.save(tmp_path / "state.safetensors")
    assert is_same(State.load(tmp_path / "state.safetensors"), trained)


def test_a_run_that_ended_is_not_trained_again(trained, train, valid):
    assert run(train, valid, ENCODER, CONFIG, state=trained) is trained
    assert len(trained.history) == CONFIG.epochs


def test_the_best_epoch_has_the_lowest_validation_logloss_and_does_not_end_the_run(worsened):
    assert worsened.best_epoch < len(worsened.history) == CONFIG.epochs
    assert worsened.best_epoch == 1 + int(np.argmin([line["valid_logloss"] for line in worsened.history]))


def test_each_set_of_weights_is_that_of_its_epoch(worsened, upside_down, trained, valid):
    for state, rows in ((worsened, upside_down), (trained, valid)):
        for weights, epoch in ((state.best, state.best_epoch), (state.last, len(state.history))):
            network = Network(ENCODER, CONFIG.network).eval()
            network.tabnet.load_state_dict(weights)
            logit = network.logit(rows.x)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, rows.label).item()
            assert loss == pytest.approx(state.history[epoch - 1]["valid_logloss"], abs=1e-5)


def test_every_epoch_draws_its_rows_anew(valid):
    config = replace(CONFIG, batch_size=64, epochs=12)
    # One batch; 63 rows are left out.
    part = first(valid, 127)

    def spoilt(row: int) -> Inputs:
        x = part.x.clone()
        x[row, 0] = math.inf
        return replace(part, x=x)

    def is_clean(row: int, epochs: int) -> bool:
        try:
            return bool(run(spoilt(row), valid, ENCODER, replace(config, epochs=epochs)).history)
        except TabrankError:
            return False

    left_out = next(row for row in range(127) if is_clean(row, epochs=1))
    assert not is_clean(left_out, epochs=12)


@pytest.mark.parametrize(("dropout", "learned"), [(0.0, False), (0.2, True)])
def test_the_unseen_embedding_is_trained_by_category_dropout(train, valid, dropout, learned):
    config = replace(CONFIG, epochs=1, category_dropout=dropout, weight_decay=0.0)
    torch.manual_seed(config.seed)
    before = Network(ENCODER, config.network).tabnet.embedder.embeddings[0].weight[UNSEEN].detach()
    state = run(train, valid, ENCODER, config)
    after = state.last["embedder.embeddings.0.weight"][UNSEEN]
    assert torch.equal(before, after) is not learned


def test_dropping_categories_leaves_the_rows_as_they_were(valid):
    train = made(500, seed=4)
    before = train.x.clone()
    run(train, valid, ENCODER, replace(CONFIG, epochs=1, category_dropout=0.9))
    assert torch.equal(train.x, before)


def test_rows_without_categories_are_trained(train, valid):
    numbers = Encoder(numeric=(NumericColumn("b"), NumericColumn("c")))
    first_two = [replace(part, x=part.x[:, 1:3].contiguous()) for part in (train, valid)]
    assert len(run(*first_two, numbers, replace(CONFIG, epochs=1)).history) == 1


def test_a_gradient_that_is_no_number_ends_the_run(train, valid):
    broken = replace(train, x=train.x.clone())
    broken.x[:, 0] = math.inf
    with pytest.raises(Diverged, match="gradient became nan; lower learning_rate"):
        run(broken, valid, ENCODER, CONFIG)


def test_too_few_rows_are_refused(train, valid):
    with pytest.raises(TabrankError, match="1 training rows"):
        run(first(train, 1), valid, ENCODER, CONFIG)


def test_a_handful_of_rows_is_enough_to_run(train, valid):
    # 2 + 2 + 1: the row left over cannot be normalised alone.
    five = first(train, 5)
    config = replace(CONFIG, network=replace(CONFIG.network, virtual_batch_size=2), epochs=2)
    assert len(run(five, first(valid, 50), ENCODER, config).history) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("num_workers", -1),
    ],
)
def test_a_senseless_setting_is_refused_by_name_and_value(name, value):
    with pytest.raises(TabrankError, match=f"{name} {value!r}"):
        FitConfig(**{name: value})


def test_the_learning_rate_rises_and_then_falls_to_its_last_share():
    config = FitConfig(learning_rate=0.1, warmup=0.2, final_rate=0.05)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] < 0.01
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == rates[20] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.005)


def test_a_run_of_one_step_has_a_learning_rate():
    assert learning_rate(0, 1, FitConfig()) > 0


def test_validation_rows_of_one_label_have_a_logloss_but_no_auc(train, valid):
    clicked = replace(valid, label=torch.ones_like(valid.label))
    line = run(train, clicked, ENCODER, replace(CONFIG, epochs=1)).history[0]
    assert line["valid_auc"] is None
    assert line["valid_logloss"] > 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_in_order_with_ties_half(rows):
    positive, negative = ([score for score, label in rows if label is side] for side in (True, False))
    value = auc(np.float32([label for _, label in rows]), np.float64([s for s, _ in rows]))
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert value == (pytest.approx(np.mean(pairs)) if pairs else None)


TAU = 1.5


def shown(num_rows: int, seed: int) -> Inputs:
    """Return rows at positions 0 to 3, examined less often at later positions."""
    rows = made(num_rows, seed)
    rng = np.random.default_rng(seed)
    examination = 1 / (1 + rng.integers(0, 4, num_rows) / TAU)
    looked = torch.from_numpy((rng.random(num_rows) < examination).astype(np.float32))[:, None]
    return Inputs(rows.x, rows.label * looked, torch.from_numpy(examination).float()[:, None])


def test_a_network_that_knows_the_examination_learns_the_label_of_rows_that_are_looked_at():
    train, valid = shown(6_000, seed=5), shown(2_000, seed=6)
    config = replace(CONFIG, network=replace(CONFIG.network, n_independent=1, n_shared=1))
    seen = made(2_000, seed=6)
    losses = []
    for examination in (train.examination, torch.ones(len(train), 1)):
        state = run(replace(train, examination=examination), valid, ENCODER, config)
        network = Network(ENCODER, config.network).eval()
        network.tabnet.load_state_dict(state.last)
        logit = network.logit(seen.x)
        losses.append(torch.nn.functional.binary_cross_entropy_with_logits(logit, seen.label).item())
    assert losses[0] < losses[1] - 0.05


def test_the_validation_logloss_is_of_labels_as_shown_and_the_auc_of_the_scores(train):
    valid = shown(1_000, seed=6)
    state = run(train, valid, ENCODER, replace(CONFIG, epochs=1))
    network = Network(ENCODER, CONFIG.network).eval()
    network.tabnet.load_state_dict(state.last)
    logit = network.logit(valid.x).double()
    chance = valid.examination.double() * torch.sigmoid(logit)
    line = state.history[0]
    assert line["valid_logloss"] == pytest.approx(
        torch.nn.functional.binary_cross_entropy(chance, valid.label.double()).item()
    )
    assert line["valid_auc"] == pytest.approx(auc(valid.label[:, 0].numpy(), logit[:, 0].numpy()))


def two_outcomes(rows: Inputs) -> Inputs:
    """Add an outcome: a share that depends on one number, and is NaN at every third row."""
    share = torch.sigmoid(2 * rows.x[:, 1:2])
    share[::3] = math.nan
    return Inputs(rows.x, torch.cat([rows.label, share], dim=1), rows.examination.repeat(1, 2))


def test_two_outcomes_are_learned_together_a_share_as_well_as_an_event(train, valid):
    held = two_outcomes(valid)
    state = run(two_outcomes(train), held, ENCODER, CONFIG)
    network = Network(ENCODER, CONFIG.network, 2).eval()
    network.tabnet.load_state_dict(state.best)
    found = torch.sigmoid(network.logit(held.x))
    assert auc(held.label[:, 0].numpy(), found[:, 0].numpy()) > 0.85
    known = ~held.label[:, 1].isnan()
    assert (found[known, 1] - held.label[known, 1]).abs().mean() < 0.1


def test_one_outcome_trains_bit_for_bit_as_without_weights_and_masks(train, valid, trained, monkeypatch):
    plain = torch.nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr("training.fit.loop._Fit._logloss", lambda self, logit, label: plain(logit, label))
    assert is_same(run(train, valid, ENCODER, CONFIG), trained)


def test_an_unknown_label_counts_for_nothing(train, valid):
    train, held = two_outcomes(train), two_outcomes(valid)
    config = replace(CONFIG, epochs=1)
    state = run(train, held, ENCODER, config)
    network = Network(ENCODER, config.network, 2).eval()
    network.tabnet.load_state_dict(state.last)
    logit, known = network.logit(held.x).double(), ~held.label[:, 1].isnan()
    parts = ((logit[:, 0], held.label[:, 0]), (logit[known, 1], held.label[known, 1]))
    losses = [torch.nn.functional.binary_cross_entropy_with_logits(x, y.double()).item() for x, y in parts]
    assert state.history[0]["valid_logloss"] == pytest.approx(sum(losses), rel=1e-6)
    # Where a label is not known, nothing else that was said of that outcome changes the run.
    examination = torch.where(train.label.isnan(), 0.1, train.examination)
    assert is_same(run(replace(train, examination=examination), held, ENCODER, config), state)


def test_clipping_bounds_the_first_step_of_all_weights_together(train, valid):
    def moments(clip_norm: float) -> torch.Tensor:
        config = replace(CONFIG, epochs=1, batch_size=3_000, clip_norm=clip_norm)
        return run(train, valid, ENCODER, config).optimiser["exp_avg"]

    # The moments of one step are a tenth of its gradient.
    whole, clipped = moments(1e6), moments(1e-3)
    assert whole.norm() > 1e-3
    assert 10 * clipped.norm().item() == pytest.approx(1e-3, rel=1e-2)
    torch.testing.assert_close(clipped / clipped.norm(), whole / whole.norm(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("theta", [1.0, 0.999, 0.3, 1e-4])
def test_examination_is_a_product_of_chances_and_stays_finite(theta):
    logit = torch.tensor([-500.0, -3.0, 0.0, 3.0, 500.0], dtype=torch.float64, requires_grad=True)
    found = as_shown(logit, torch.full((5,), theta))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logit.grad).all()
    chance = torch.sigmoid(found) / torch.sigmoid(logit)
    torch.testing.assert_close(chance[1:4], torch.full((3,), theta, dtype=torch.float64), rtol=1e-5, atol=0)
    if theta == 1:
        assert torch.equal(found, logit)


@pytest.mark.parametrize("pieces", [False, True])
def test_ranks_share_the_batches_of_one_process_and_read_each_row_once(monkeypatch, pieces):
    if pieces:
        monkeypatch.setattr("training.network.network.SHUFFLED_ROWS", 300)
        monkeypatch.setattr("training.network.network.PIECE_ROWS", 30)
    number = torch.arange(1_000)
    rows = Inputs(number[:, None].float(), torch.zeros(1_000, 1), number[:, None])
    alone, *ranks = (
        torch.stack([batch.examination for batch in rows.batches(100, mine, seed=7)])
        for mine in (slice(0, 100), slice(0, 50), slice(50, 100))
    )
    assert torch.cat(ranks, dim=1).tolist() == alone.tolist()
    assert sorted(alone.flatten().tolist()) == number.tolist()
    assert alone.flatten().tolist() != number.tolist()
    other = torch.cat([batch.examination for batch in rows.batches(100, slice(0, 100), seed=8)])
    assert other.flatten().tolist() != alone.flatten().tolist()


def test_a_pass_reads_a_bounded_part_of_the_rows_at_once_in_whole_pieces(monkeypatch):
    """So a pass over rows in a file reads the file nearly in order, whatever their number."""
    monkeypatch.setattr("training.network.network.SHUFFLED_ROWS", 300)
    monkeypatch.setattr("training.network.network.PIECE_ROWS", 30)
    number = torch.arange(1_210)
    rows = Inputs(number[:, None].float(), torch.zeros(1_210, 1), number[:, None])
    order = torch.cat([batch.examination[:, 0] for batch in rows.batches(10, slice(0, 10), seed=7)])
    assert sorted(order.tolist()) == number.tolist()
    pieces = [set((part // 30).tolist()) for part in order.split(300)]
    # The last piece is short, so that the part that has it may begin one more.
    assert max(map(len, pieces)) <= 11
    # They come from all over, and their rows are mixed.
    assert all(max(part) - min(part) > 10 for part in pieces[:4])
    assert (order[:-1] + 1 != order[1:]).float().mean() > 0.9


class FixedInputNorm(Network):
    """Network without the norm over all rows, which alone depends on the number of ranks.

    Uses float64: in float32, training amplifies the rounding of another order of sums, on some
    processors beyond the bounds.
    """

    def __init__(self, encoder: Encoder, config: NetworkConfig, num_outcomes: int) -> None:
        super().__init__(encoder, config, num_outcomes)
        self.double()

    def train(self, mode: bool = True) -> "FixedInputNorm":
        super().train(mode)
        self.tabnet.tabnet.encoder.initial_bn.eval()
        return self


RANK = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from safetensors.torch import load_file
import training.fit.loop
from serve.model.encoder import Encoder
from training.fit.loop import FitConfig, Inputs, run
from training.network.network import Network, NetworkConfig

class FixedInputNorm(Network):
    def __init__(self, encoder, config, num_outcomes):
        super().__init__(encoder, config, num_outcomes)
        self.double()

    def train(self, mode=True):
        super().train(mode)
        self.tabnet.tabnet.encoder.initial_bn.eval()
        return self

training.fit.loop.Network = FixedInputNorm
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
rows = load_file(folder / "rows")
network = NetworkConfig(width=8, n_steps=2, n_independent=2, n_shared=2, virtual_batch_size=64)
config = FitConfig(network, epochs=3, batch_size=256, category_dropout=0.05)
encoder = Encoder.from_json((folder / "encoder").read_text())
parts = ("x", "label", "examination")
train, valid = (Inputs(*(rows[f"{part} {what}"] for what in parts)) for part in ("train", "valid"))
state = run(train, valid, encoder, config)
state.save(folder / str(rank))
dist.destroy_process_group()
"""


@pytest.mark.integration
@pytest.mark.no_ray
def test_two_ranks_make_the_steps_of_one_process(train, valid, tmp_path, monkeypatch):
    (tmp_path / "encoder").write_text(ENCODER.to_json())
    train, valid = (replace(rows, x=rows.x.double(), label=rows.label.double()) for rows in (train, valid))
    sets = {"train": train, "valid": valid}
    save_file(
        {f"{name} {what}": t for name, rows in sets.items() for what, t in vars(rows).items()},
        tmp_path / "rows",
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "error", "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (State.load(tmp_path / str(rank)) for rank in (0, 1))
    assert all(torch.equal(first.last[name], second.last[name]) for name in first.last)
    monkeypatch.setattr("training.fit.loop.Network", FixedInputNorm)
    alone = run(train, valid, ENCODER, replace(CONFIG, epochs=3))
    for shared, single in zip(first.history, alone.history, strict=True):
        assert shared["train_logloss"] == pytest.approx(single["train_logloss"], abs=1e-4)
        assert shared["valid_logloss"] == pytest.approx(single["valid_logloss"], abs=1e-2)
