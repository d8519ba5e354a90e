import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from serve.model.encoder import Encoder, NumericColumn, SingleColumn
from training.fit.loop import FitConfig, State, run
from training.network.model import one_thread
from training.network.network import Inputs, NetworkConfig, inputs

pytestmark = pytest.mark.integration

DRIVER = """
import dataclasses, json, sys
from pathlib import Path
from serve.model.encoder import Encoder
from serve.contract.errors import TabrankError
from training.fit.loop import FitConfig
from training.network.network import Inputs, NetworkConfig
from training.fit.trainer import ray_session, train

folder, names = Path(sys.argv[1]), sys.argv[2].split(",")
encoder = Encoder.from_json((folder / "encoder").read_text())
rows, more = (Inputs.map(folder, name) for name in ("train", "valid"))
about = json.loads((folder / "config").read_text())
whole = FitConfig(NetworkConfig(**about.pop("network")), **about)
short = dataclasses.replace(whole, epochs=2)
runs = {
    "whole": whole,
    "whole again": whole,
    "two workers": dataclasses.replace(short, num_workers=2),
    "one worker": short,
    "in this process": dataclasses.replace(short, num_workers=0),
    "too many workers": dataclasses.replace(short, num_workers=99),
    # Two workers hold both CPUs of a small machine.
    "killed": dataclasses.replace(whole, num_workers=2),
}
with ray_session():
    for name in names:
        print(name, file=sys.stderr)
        try:
            storage = folder / name.removesuffix(" again")
            answer = train(rows, more, encoder, runs[name], storage=storage)
        except TabrankError as error:
            print(json.dumps({"name": name, "error": str(error)}))
            continue
        weights = {name: float(array.sum()) for name, array in answer.kept(runs[name]).items()}
        result = {"history": answer.history, "best_epoch": answer.best_epoch, "weights": weights}
        print(json.dumps({"name": name, **result}), flush=True)
"""

ENCODER = Encoder((NumericColumn("a"), NumericColumn("b")), (SingleColumn("topic", ("x", "y", "z")),))
CONFIG = FitConfig(NetworkConfig(width=8, n_steps=2, virtual_batch_size=64), epochs=40, batch_size=512)


def made(num_rows: int, seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(num_rows, 2)).astype(np.float32)
    logit = 4 * np.sign(numeric[:, 0] * numeric[:, 1]) - 1
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    hot, index = np.zeros((num_rows, 0), np.float32), rng.integers(2, 5, size=(num_rows, 1))
    return inputs(ENCODER, (numeric, hot, index), label[:, None], np.ones((num_rows, 1)))


TRAIN, VALID = made(16_000, 1), made(1_000, 2)


def write_case(folder: Path) -> None:
    """Record the progress lines of a `Driver`."""
    for name, rows in (("train", TRAIN), ("valid", VALID)):
        rows.save(folder, name)
    (folder / "encoder").write_text(ENCODER.to_json())
    config = vars(CONFIG) | {"network": vars(CONFIG.network)}
    (folder / "config").write_text(json.dumps(config))


class Driver:
    """Process that trains, as `python -m training fit` does."""

    def __init__(self, folder: Path, *names: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", DRIVER, str(folder), ",".join(names)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.lines: list[str] = []

    def wait_for(self, start: str) -> None:
        """Read the driver's messages up to a line with this start."""
        for line in self.process.stderr:
            self.lines.append(line.strip())
            if line.startswith(start):
                return
        raise AssertionError(f"no line {start!r} in {self.lines}")

    def answers(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=300)
        self.lines += err.splitlines()
        assert self.process.returncode == 0, self.lines
        return {answer["name"]: answer for answer in map(json.loads, out.splitlines())}


class Story:
    """A run that loses its worker, then its driver, and is called again beside others."""

    names = "whole", "whole again", "too many workers"

    def __init__(self, folder: Path) -> None:
        write_case(folder)
        self.folder = folder
        self._kill(folder)
        self.second = Driver(folder, *self.names)
        self.answers = self.second.answers()

    def _kill(self, folder: Path) -> None:
        self.first = Driver(folder, "whole")
        self.first.wait_for("epoch 2/")
        family = psutil.Process(self.first.process.pid).children(recursive=True)
        (worker,) = (child for child in family if child.name().startswith("ray::RayTrainWorker"))
        worker.kill()
        self.first.wait_for("epoch 5/")
        self.family = psutil.Process(self.first.process.pid).children(recursive=True)
        # Kill long before the last epoch, even if this process reads the line late.
        self.first.wait_for("epoch 6/")
        self.first.process.send_signal(signal.SIGKILL)
        self.first.process.communicate()
        _, self.orphans = psutil.wait_procs(self.family, timeout=20)

    def messages(self, name: str) -> list[str]:
        """Return the second driver's messages about one of its runs."""
        lines = self.second.lines[self.second.lines.index(name) + 1 :]
        names = {*self.answers} - {name}
        return lines[: next((i for i, line in enumerate(lines) if line in names), None)]


class TwoWorkersStory(Story):
    """A run of two workers that loses its driver, and shorter ones of two workers and of none."""

    names = "two workers", "in this process", "killed"

    def _kill(self, folder: Path) -> None:
        killed = Driver(folder, "killed")
        killed.wait_for("epoch 2/")
        killed.process.kill()
        killed.process.communicate()


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    return Story(tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory) -> Story:
    return TwoWorkersStory(tmp_path_factory.mktemp("two_workers"))


@pytest.fixture(scope="module")
def nearly(tmp_path_factory) -> Path:
    """Return the folder where `uninterrupted` leaves its state two epochs before its end."""
    return tmp_path_factory.mktemp("nearly") / "state.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(nearly) -> State:
    def keep(state: State) -> None:
        if len(state.history) == CONFIG.epochs - 2:
            state.save(nearly)

    with one_thread():
        return run(TRAIN, VALID, ENCODER, CONFIG, after_epoch=keep)


def epochs_of(lines: list[str]) -> list[int]:
    return [int(line.split("/")[0].removeprefix("epoch ")) for line in lines if line.startswith("epoch ")]


@pytest.mark.proof
def test_a_killed_worker_is_replaced_and_goes_on_from_its_last_epoch(story):
    epochs = epochs_of(story.first.lines)
    assert sorted(set(epochs)) == [1, 2, 3, 4, 5, 6]
    assert epochs.count(1) == 1


@pytest.mark.proof
def test_nothing_runs_on_when_the_driver_is_killed(story):
    assert len(story.family) > 3
    assert story.orphans == []


@pytest.mark.proof
def test_a_killed_run_that_is_called_again_ends_as_one_that_was_never_cut(story, uninterrupted):
    assert epochs_of(story.messages("whole"))[0] >= 6
    answer = story.answers["whole"]
    assert [line["epoch"] for line in answer["history"]] == list(range(1, CONFIG.epochs + 1))
    for name in ("train_logloss", "valid_logloss", "valid_auc"):
        expected = [line[name] for line in uninterrupted.history]
        assert [line[name] for line in answer["history"]] == pytest.approx(expected, abs=1e-5)
    sums = {name: tensor.sum().item() for name, tensor in uninterrupted.best.items()}
    assert answer["weights"] == pytest.approx(sums, rel=1e-3, abs=1e-3)


@pytest.mark.proof
def test_a_finished_run_is_answered_without_training(story):
    assert epochs_of(story.messages("whole again")) == []
    assert story.answers["whole again"]["history"] == story.answers["whole"]["history"]


@pytest.mark.proof
def test_two_workers_come_to_the_end_of_the_same_run(two_workers):
    """test_loop tests that two ranks share each batch of one process and take its steps."""
    both, alone = (two_workers.answers[name]["history"] for name in ("two workers", "in this process"))
    assert [line["epoch"] for line in both] == [line["epoch"] for line in alone] == [1, 2]
    assert [line["learning_rate"] for line in both] == [line["learning_rate"] for line in alone]


@pytest.mark.gpu
def test_workers_on_gpus_come_to_the_losses_of_the_cpu(tmp_path):
    """Ray Train gives each worker a GPU, and torch connects them by NCCL."""
    write_case(tmp_path)
    name = "two workers" if torch.cuda.device_count() > 1 else "one worker"
    history = Driver(tmp_path, name).answers()[name]["history"]
    with one_thread():
        alone = run(TRAIN, VALID, ENCODER, replace(CONFIG, epochs=2)).history
    for line in ("train_logloss", "valid_logloss"):
        assert [epoch[line] for epoch in history] == pytest.approx([epoch[line] for epoch in alone], abs=0.05)


@pytest.mark.proof
def test_a_killed_run_of_two_workers_goes_on_from_its_last_epoch(two_workers):
    assert epochs_of(two_workers.messages("killed"))[0] >= 2
    assert [line["epoch"] for line in two_workers.answers["killed"]["history"]] == list(range(1, 41))


@pytest.mark.proof
def test_more_workers_than_cpus_are_refused(story):
    assert "num_workers 99" in story.answers["too many workers"]["error"]


@pytest.mark.proof
def test_only_one_state_is_left_of_a_run(story):
    left = [path for path in (story.folder / "whole").rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix in (".npy", ".pkl", ".pickle", ".partial")]
    assert len([path for path in left if path.name == "state.safetensors"]) == 1


def test_progress_is_one_line_per_epoch():
    from training.fit.trainer import describe_epoch

    config = replace(CONFIG, epochs=3)
    line = {"epoch": 1, "train_logloss": 0.5, "valid_logloss": 0.25, "valid_auc": None, "learning_rate": 0.1}
    line |= {"seconds": 2.0}
    told = "epoch 1/3  train logloss 0.5000  valid logloss 0.2500"
    assert describe_epoch(line, config) == f"{told}  2.0 s"
    assert describe_epoch(line | {"valid_auc": 0.75}, config) == f"{told}  valid auc 0.7500  2.0 s"
    # The last epoch counts, whatever its validation rows say.
    assert describe_epoch(line, replace(config, restore_best=False)) == "epoch 1/3  train logloss 0.5000"


def test_a_run_that_was_killed_goes_on_from_its_state(tmp_path, nearly, uninterrupted, capsys):
    from training.fit.trainer import _fingerprint, train

    config = replace(CONFIG, num_workers=0)
    kept = tmp_path / f"fit-{_fingerprint(TRAIN, VALID, ENCODER, config)}" / "state.safetensors"
    kept.parent.mkdir(parents=True)
    shutil.copy2(nearly, kept)
    answer = train(TRAIN, VALID, ENCODER, config, storage=tmp_path)
    assert epochs_of(capsys.readouterr().err.splitlines()) == [CONFIG.epochs - 1, CONFIG.epochs]
    ours, theirs = (
        [line["valid_logloss"] for line in history] for history in (answer.history, uninterrupted.history)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_fingerprint_covers_all_that_a_result_depends_on(monkeypatch):
    from training.fit.trainer import _fingerprint

    other = made(1_000, 3)
    same = _fingerprint(VALID, VALID, ENCODER, CONFIG)
    assert _fingerprint(VALID, VALID, ENCODER, replace(CONFIG, num_workers=2)) == same
    assert _fingerprint(VALID, VALID, ENCODER, replace(CONFIG, seed=1)) != same
    assert _fingerprint(other, VALID, ENCODER, CONFIG) != same
    assert _fingerprint(VALID, other, ENCODER, CONFIG) != same
    monkeypatch.setattr("training.fit.trainer.STATE_FORMAT", b"0")
    assert _fingerprint(VALID, VALID, ENCODER, CONFIG) != same


def test_a_run_that_was_killed_at_its_very_end_is_answered_and_cleared_up(tmp_path, uninterrupted, capsys):
    from training.fit.trainer import _fingerprint, train

    config = replace(CONFIG, num_workers=0)
    folder = tmp_path / f"fit-{_fingerprint(TRAIN, VALID, ENCODER, config)}"
    folder.mkdir(parents=True)
    uninterrupted.save(folder / "state.safetensors")
    TRAIN.save(folder / "inputs", "train")
    answer = train(TRAIN, VALID, ENCODER, config, storage=tmp_path)
    assert epochs_of(capsys.readouterr().err.splitlines()) == []
    assert answer.history == uninterrupted.history
    assert not (folder / "inputs").exists()
