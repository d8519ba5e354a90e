"""Kill processes that publish and promote, and print the state of the folder after each kill.

The processes are forked, so that 200 of them do not need 200 imports. Half of them are killed at a
line of the writing code, one after the other from the first line to the last. The others are killed
at a random moment. The output has one line per process: the promoted version, then all versions.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import serve.model.artifact as subject
from serve.storage import atomic_files as durable

WRITING = {
    *((subject.__file__, name) for name in ("point", "_write_folder", "_sweep")),
    *((durable.__file__, name) for name in ("put", "sync")),
}


def publish_and_promote(source: Path, models: Path) -> None:
    """Publish and promote an artifact. The process is killed during this call."""
    version = subject.publish(source, models)
    subject.point(models, subject.CURRENT, version, durable.content_of(models / subject.CURRENT))


def at_each_line(do: Callable[[], None]) -> Any:
    """Return a function for `sys.settrace` that calls `do` before each line of the writing code."""

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if (frame.f_code.co_filename, frame.f_code.co_name) not in WRITING:
            return None
        do()
        return trace

    return trace


def child(work: Callable[[], None], at_line: int | None = None) -> int:
    """Fork a child that does the work, and kills itself at the given line."""
    pid = os.fork()
    if pid:
        return pid
    lines = count(1)
    try:
        if at_line is not None:
            sys.settrace(
                at_each_line(lambda: os.kill(os.getpid(), signal.SIGKILL) if next(lines) == at_line else None)
            )
        work()
    finally:
        os._exit(0)


def lines_of(work: Callable[[], None]) -> int:
    """Return how many lines of the writing code the work runs."""
    lines = count()
    sys.settrace(at_each_line(lambda: next(lines) and None))
    work()
    sys.settrace(None)
    return next(lines)


def main(folder: Path, num_kills: int) -> None:
    """Run all kills; `folder` holds the artifacts `old` and `new`."""
    draw = random.Random(2)
    old, new = folder / "old", folder / "new"
    begun = time.perf_counter()
    publish_and_promote(old, folder / "dry")
    took_s = 1.5 * (time.perf_counter() - begun)
    num_lines = lines_of(lambda: publish_and_promote(new, folder / "dry"))
    for number in range(num_kills):
        models = folder / f"models{number}"
        publish_and_promote(old, models)

        def work(models: Path = models) -> None:
            publish_and_promote(new, models)

        if number % 2:
            pid = child(work, 1 + number * num_lines // num_kills)
        else:
            pid = child(work)
            time.sleep(draw.uniform(0.0, took_s))
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        versions = subject.versions(models)
        for version in versions:
            # This raises if the version is a mixture.
            subject.load(models / version)
        print(subject.current(models), *versions, flush=True)
        # The next process completes the work, and removes what the killed one left.
        work()
        assert subject.current(models) == subject.load(new).version
        assert len(list(models.iterdir())) == 3, list(models.iterdir())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
