"""Run the training loop on Ray Train (V2), with workers, resumption and progress."""

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray._private import ray_constants
from ray.train.torch import TorchTrainer, get_device

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder
from training.fit.loop import Epoch, FitConfig, State, run
from training.network.model import one_thread
from training.network.network import Inputs
from training.terminal import print_progress

# Ray reads these settings from the environment. A value that is already set takes precedence.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # How often Ray Train looks whether workers have ended. Ray's default is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C ends the command. The next call resumes the search.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

# Increment this when the layout of `State` changes, so that no run resumes from an older layout.
STATE_FORMAT = b"2"
STATE = "state.safetensors"


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Keep Ray running within the block.

    If a Ray runs here already, or at RAY_ADDRESS, it is used and left running. Otherwise one is
    started, which listens on 127.0.0.1 and ends with this process, even if the process is killed.
    """
    os.environ |= SETTINGS | os.environ
    if ray.is_initialized():
        yield
        return
    on_terminate = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            # A socket's path has at most 107 characters, of which Ray uses 80, so ignore TMPDIR.
            temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            _start_ray(stack.enter_context(temporary))
        stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            # ray.init() has installed a handler of its own, which exits with 1.
            signal.signal(signal.SIGTERM, on_terminate)
        yield


def _start_ray(temporary: str) -> None:
    # With False, Ray uses 127.0.0.1 as the node's address. The environment variable for it would
    # come too late, because Ray reads it at import.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # The object store may be small, because workers read the rows from files.
        object_store_memory=256 * 2**20,
        _temp_dir=temporary,
    )
    # If this process is killed, the raylet is killed too, and its agents would try for 60 s to
    # reach a GCS that has ended. They end at once if the raylet's log contains a request to end.
    with (Path(temporary) / "session_latest" / "logs" / "raylet.out").open("a") as log:
        log.write("If killed with its driver, as if: Raylet received SIGTERM\n")


def train(
    train: Inputs,
    valid: Inputs,
    encoder: Encoder,
    config: FitConfig,
    *,
    storage: Path,
) -> State:
    """Train on `config.num_workers` Ray workers or, if that is 0, in this process.

    A killed run resumes after its last epoch if it is called again with the same rows, encoder,
    configuration and `storage`. It then gives the same result. Other files in `storage` are left
    alone. All workers must see this folder, and the caller deletes it.

    Raises:
        TabrankError: there are too few rows, the training diverges, or there are more workers than
            CPUs or GPUs.
        ray.train.TrainingFailedError: workers died more than twice.
    """
    folder = storage.resolve() / f"fit-{_fingerprint(train, valid, encoder, config)}"
    state = State.load(folder / STATE) if (folder / STATE).exists() else None
    if state is None or len(state.history) < config.epochs:
        valid.save(folder / "inputs", "valid")
        train.save(folder / "inputs", "train")
        with _following(folder / STATE, config, num_told=len(state.history) if state else 0):
            state = _fit(encoder, config, folder)
        if config.restore_best:
            print_progress(f"best epoch {state.best_epoch}")
    # Also remove the inputs of an earlier call that was killed at the very end.
    shutil.rmtree(folder / "inputs", ignore_errors=True)
    return state


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer that leaves Ctrl-C to the caller.

    Ray's handler would end the process with exit code 0, as if it had succeeded, and would stay
    installed after the run.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _fit(encoder: Encoder, config: FitConfig, folder: Path) -> State:
    job = {"encoder": encoder, "config": config, "folder": str(folder)}
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    session = ray_session() if config.num_workers else contextlib.nullcontext()
    with session:
        use_gpu = torch.cuda.is_available()
        if config.num_workers:
            # Without this check, Ray would wait forever for resources that it does not have.
            kind = "GPU" if use_gpu else "CPU"
            room = int(ray.cluster_resources().get(kind, 0))
            if config.num_workers > room:
                raise TabrankError(
                    f"fit: num_workers {config.num_workers} is more than the {room} {kind}s that Ray has; lower it"
                )
        trainer = _Trainer(
            _work,
            train_loop_config=job,
            scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=2),
            ),
        )
        outcome = trainer.fit().return_value
    if isinstance(outcome, TabrankError):
        raise outcome
    assert isinstance(outcome, State)
    return outcome


def _work(job: dict[str, Any]) -> State | TabrankError:
    """Run the loop on one worker. A user's mistake is returned, as Ray Train retries exceptions."""
    folder = Path(job["folder"])
    path = folder / STATE

    try:
        # To use more cores, use more workers.
        with one_thread():
            return run(
                Inputs.map(folder / "inputs", "train"),
                Inputs.map(folder / "inputs", "valid"),
                job["encoder"],
                job["config"],
                state=State.load(path) if path.exists() else None,
                after_epoch=lambda state: state.save(path),
                device=get_device(),
            )
    except TabrankError as error:
        return error


def _fingerprint(train: Inputs, valid: Inputs, encoder: Encoder, config: FitConfig) -> str:
    """Return a digest of all that the result depends on, so that only the same run resumes."""
    digest = hashlib.sha256(STATE_FORMAT + encoder.to_json().encode())
    digest.update(json.dumps(asdict(replace(config, num_workers=0))).encode())
    for part in (train, valid):
        for tensor in (part.x, part.label, part.examination):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()[:12]


def describe_epoch(line: Epoch, config: FitConfig) -> str:
    """Describe an epoch, with validation measures if these choose the epoch to keep."""
    text = f"epoch {line['epoch']}/{config.epochs}  train logloss {line['train_logloss']:.4f}"
    if not config.restore_best:
        return text
    auc = "" if line["valid_auc"] is None else f"  valid auc {line['valid_auc']:.4f}"
    return f"{text}  valid logloss {line['valid_logloss']:.4f}{auc}  {line['seconds']:.1f} s"


@contextlib.contextmanager
def _following(path: Path, config: FitConfig, num_told: int) -> Iterator[None]:
    """While the block runs, print each new epoch in a state's file after the first `num_told`."""
    over = threading.Event()

    def follow() -> None:
        told, is_over = num_told, False
        while not is_over:
            # A look takes 2 ms of a processor.
            is_over = over.wait(0.2)
            history = State.load(path).history if path.exists() else []
            for line in history[told:]:
                print_progress(describe_epoch(line, config))
            told = len(history)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
