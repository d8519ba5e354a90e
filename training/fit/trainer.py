"""Ray Train (V2) around the training loop: workers, checkpoints, resumption, and progress on the driver."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from numpy.typing import NDArray
from ray._private import ray_constants
from ray.train.torch import TorchTrainer, get_device
from safetensors import SafetensorError

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder
from training.data.stream import Streamed
from training.fit.loop import Epoch, FitConfig, State, run
from training.fit.progress import Progress
from training.network.inputs import Inputs, Rows, inputs
from training.network.model import one_thread
from training.network.position_bias import Bias

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how often a report is taken; 2 s by default
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""What Ray must find in the environment; a value that is set already wins."""

STATE, PROGRESS, RESUMED = "state.safetensors", "progress.jsonl", "resumed.safetensors"

_LAYOUT = b"moments of one tensor"
"""Of what a State holds: a run does not go on from a checkpoint that is laid out otherwise."""


@dataclass(frozen=True)
class Trained:
    """What `train` answers: the TabNet's state dict, and how it came about."""

    weights: dict[str, NDArray[Any]]
    history: list[Epoch]
    best_epoch: int
    position_tau: float | None
    """The position, from 0, at which half still look, where the surface makes up for positions."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Ray for as long as the block runs; a Ray that runs already, here or at RAY_ADDRESS, is used and left.

    A Ray that is started here listens on 127.0.0.1 and ends with this process, however that ends.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    on_terminate = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            # A socket's path ends at 107 characters, of which Ray wants 80: hence not where TMPDIR says.
            temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            _start_ray(stack.enter_context(temporary))
        stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init() has put its own, which exits with 1
        yield


def _start_ray(temporary: str) -> None:
    # Where it is false, Ray takes 127.0.0.1 for the node's address. It is read from the environment at import.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(
        address="local",
        num_cpus=_num_cores(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 * 2**20,  # only streamed rows pass through it, few at a time
        _temp_dir=temporary,
    )
    # If this process is killed the raylet is killed too, and its agents would try for 60 s to tell a GCS that
    # is gone; they end at once where the raylet's log says that it was asked to end.
    with (Path(temporary) / "session_latest" / "logs" / "raylet.out").open("a") as log:
        log.write("If killed with its driver, as if: Raylet received SIGTERM\n")


def train(
    train: Rows | Streamed,
    valid: Rows,
    encoder: Encoder,
    config: FitConfig,
    *,
    storage: Path,
    progress: Progress,
) -> Trained:
    """Trains on `config.num_workers` Ray workers (0: in this process, without checkpoints).

    A run that was killed goes on from its last epoch if it is called again with the same rows, encoder,
    configuration and `storage`, and ends as it would have; anything else there is left alone. `storage`
    is a folder that all workers see, and the caller's to delete.

    Raises:
        TabrankError: if the rows are too few, the training diverges, there are more workers than CPUs or GPUs, or a
            run's checkpoints cannot be gone on from.
        ray.train.TrainingFailedError: if workers die more than twice.
    """
    streamed = train if isinstance(train, Streamed) else None
    sets = {"valid": inputs(valid, encoder, config.network)}
    if not isinstance(train, Streamed):
        sets["train"] = inputs(train, encoder, config.network)
    folder = storage.resolve() / f"fit-{_fingerprint(sets, encoder, config, streamed)}"
    state = _finished(folder)
    if state is None:
        for name, part in sets.items():
            part.save(folder / "inputs", name)
        del sets
        progress.start(config.epochs)
        try:
            with _following(folder / PROGRESS, progress):
                state = _fit(encoder, config, folder, streamed)
        finally:
            progress.finish(state.best_epoch if state else None)
        (folder / RESUMED).unlink(missing_ok=True)
        if config.num_workers:  # in this process there are no checkpoints
            _sweep(folder)
    shutil.rmtree(folder / "inputs", ignore_errors=True)  # of a driver that was killed at the very end, too
    weights = state.best if config.restore_best else state.last
    bias = Bias(config.position_bias)
    bias.load_state_dict(state.bias)
    return Trained(
        {name: tensor.numpy() for name, tensor in weights.items()},
        state.history,
        state.best_epoch,
        bias.tau,
    )


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without the actors for Ray Data and for placement groups that outlive a controller: 2 to 3 s a run.

    Rows in memory need no Ray Data, and of streamed ones each worker makes its own. A driver whose controller
    died ends, and its placement groups with it. Ctrl-C stays the caller's: Ray's own handler would end the process
    with 0, as if all had gone well, and be left installed after the run.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unused]

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _fit(encoder: Encoder, config: FitConfig, folder: Path, streamed: Streamed | None) -> State:
    job = {"encoder": encoder.to_json(), "config": config, "folder": str(folder), "streamed": streamed}
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    session = ray_session() if config.num_workers or streamed is not None else contextlib.nullcontext()
    with session:
        use_gpu = torch.cuda.is_available()
        if config.num_workers:
            _check_room(config.num_workers, "GPU" if use_gpu else "CPU")
        trainer = _Trainer(
            _work,
            train_loop_config=job,
            scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=2),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        outcome = trainer.fit().return_value
    if isinstance(outcome, TabrankError):
        raise outcome
    assert isinstance(outcome, State)
    return outcome


def _work(job: dict[str, Any]) -> State | TabrankError:
    """What each worker runs. A user's mistake is returned, since what is raised would be tried again."""
    context, folder = ray.train.get_context(), Path(job["folder"])
    checkpoint = ray.train.get_checkpoint()
    path = Path(checkpoint.path) / STATE if checkpoint else folder / RESUMED
    state = State.load(path) if path.exists() else None

    def after_epoch(state: State) -> None:
        line = state.history[-1]
        if context.get_world_rank() > 0:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as temporary:
            state.save(Path(temporary) / STATE)
            ray.train.report(dict(line), checkpoint=ray.train.Checkpoint.from_directory(temporary))
        with (folder / PROGRESS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    try:
        with one_thread():  # more workers do use more cores
            return run(
                job["streamed"] if job["streamed"] is not None else Inputs.map(folder / "inputs", "train"),
                Inputs.map(folder / "inputs", "valid"),
                Encoder.from_json(job["encoder"]),
                job["config"],
                state=state,
                after_epoch=after_epoch,
                device=get_device(),
            )
    except TabrankError as error:
        return error


def _sweep(folder: Path) -> None:
    """Removes checkpoints that Ray does not know of: of a worker or driver that was killed while it wrote."""
    result = ray.train.Result.from_path(folder)
    known = {Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints or []}
    known.add(Path(result.checkpoint.path).name)
    for path in folder.glob("checkpoint_*"):
        if path.is_dir() and path.name not in known:
            shutil.rmtree(path)


def _finished(folder: Path) -> State | None:
    """The state of a run that needs no more training.

    A run is gone on from by Ray's own books of its checkpoints. Where these were cut in a write, the newest state is
    kept in a folder that is otherwise new; one that holds none is removed.
    """
    if not folder.exists():
        return None
    newest = max(_states(folder), key=lambda state: len(state.history), default=None)
    if newest is not None and newest.stopped:
        return newest
    try:
        ray.train.Result.from_path(folder)
    except Exception:  # Ray says it in many ways
        shutil.rmtree(folder)
        if newest is not None:
            folder.mkdir()
            newest.save(folder / RESUMED)
    return None


def _states(folder: Path) -> Iterator[State]:
    """Every whole state in a run's folder."""
    for path in (*folder.glob(f"*/{STATE}"), *folder.glob(RESUMED)):
        with contextlib.suppress(SafetensorError, ValueError, KeyError, TypeError):  # torn
            yield State.load(path)


def _fingerprint(
    sets: dict[str, Inputs], encoder: Encoder, config: FitConfig, streamed: Streamed | None = None
) -> str:
    """Names a run by all that its result depends on, so that only the same run goes on from a checkpoint."""
    digest = hashlib.sha256(encoder.to_json().encode())
    digest.update(_LAYOUT)
    digest.update(json.dumps(asdict(replace(config, num_workers=0))).encode())
    if streamed is not None:
        digest.update(streamed.digest.encode())
    for part in sets.values():
        for tensor in (part.x, part.label, part.position):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _following(path: Path, progress: Progress) -> Iterator[None]:
    """Tells `progress` of the lines that are added to a file while the block runs."""
    path.touch()
    over = threading.Event()
    with path.open() as file:
        file.seek(0, os.SEEK_END)

        def follow() -> None:
            text, is_over = "", False
            while not is_over:
                is_over = over.wait(0.1)
                *lines, text = (text + file.read()).split("\n")
                for line in lines:
                    progress.epoch(json.loads(line))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _check_room(num_workers: int, kind: str) -> None:
    """Refuses more workers than fit, for which Ray would wait."""
    room = int(ray.cluster_resources().get(kind, 0))
    if num_workers > room:
        raise TabrankError(
            f"fit: num_workers {num_workers} is more than the {room} {kind}s that Ray has; lower it"
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
