"""Publishes and promotes in children that are killed on the way; says after each kill what is there.

A child is forked from here, so that 200 of them cost no 200 imports. Half of them are killed at a line of the code
that writes, from the first to the last, the others at a random moment; a line is printed of each: what the pointer
names, and the versions.
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
from serve.log import atomic_files as durable

WRITING = {
    *((subject.__file__, name) for name in ("point", "_write_folder", "_sweep")),
    *((durable.__file__, name) for name in ("put", "sync")),
}


def publish_and_promote(source: Path, models: Path) -> None:
    """What is killed."""
    subject.point(models, subject.CURRENT, subject.publish(source, models))


def at_each_line(do: Callable[[], None]) -> Any:
    """A trace that does it before each line of what writes."""

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if (frame.f_code.co_filename, frame.f_code.co_name) not in WRITING:
            return None
        do()
        return trace

    return trace


def child(work: Callable[[], None], at_line: int | None = None) -> int:
    """A child that does the work, and kills itself at a line if one is given."""
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
    """How many lines of what writes the work runs."""
    lines = count()
    sys.settrace(at_each_line(lambda: next(lines) and None))
    work()
    sys.settrace(None)
    return next(lines)


def main(folder: Path, num_kills: int) -> None:
    """`folder` holds the artifacts `old` and `new`."""
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
            subject.load(models / version)  # raises where it is a mix
        print(subject.current(models), *versions, flush=True)
        work()  # and whoever comes next finishes it, and clears away
        assert subject.current(models) == subject.load(new).version
        assert len(list(models.iterdir())) == 3, list(models.iterdir())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
