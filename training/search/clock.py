"""The budget of a search: what is spent of it, over all calls, kept with what is searched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any, TypeVar

from serve.durable import write_whole
from serve.errors import TabrankError
from serve.strict import refuse_file

FILE = "search.json"
Plain = TypeVar("Plain", bound=int | str | dict[str, int] | None)


class Clock:
    """How much of the budget is spent, over all calls; kept in the search's folder with what is searched.

    The folder is this search's alone for as long as the `with` block runs.
    """

    def __init__(self, out: Path, budget_s: float) -> None:
        """Raises TabrankError where a search runs in `out`, or `out` is there and holds none."""
        self.out, self.budget_s = out, budget_s
        self._begun = time.monotonic()
        self._state: dict[str, Any] = {"spent_s": 0.0}
        refuse_file(out)
        self._lock = _locked(out)
        try:
            self._read()
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    def _unlock(self) -> None:
        Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()

    def _read(self) -> None:
        if (self.out / FILE).exists():
            try:
                self._state = json.loads((self.out / FILE).read_text())
            except (OSError, ValueError) as error:
                raise TabrankError(
                    f"{self.out / FILE}: cannot be read: {error}; remove {self.out}"
                ) from error
        elif self.out.exists() and any(self.out.iterdir()):
            raise TabrankError(
                f"{self.out}: exists already and holds no search; name another folder or remove it first"
            )

    def claim(self, identity: str, *, anew: bool) -> None:
        """Makes the folder that of the search of this identity.

        With `anew`, what is there of another search, or of one that is over, is removed.

        Raises:
            TabrankError: another search's folder, without `anew`.
        """
        other = self._state.get("identity", identity) != identity
        if anew and (other or self._state.get("over")):
            aside = self.out.with_name(f".{self.out.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            self.out.rename(aside)  # at once, so that a kill leaves no half of a search
            shutil.rmtree(aside)
            self._state = {"spent_s": 0.0}
        elif other:
            raise TabrankError(
                f"{self.out}: holds a search over another log, surface, seed or days; name another folder"
            )
        self._state["identity"] = identity
        self.out.mkdir(parents=True, exist_ok=True)
        self.save(over=False)

    def keep(self, name: str, value: Plain) -> Plain:
        """What the first call of this search gave under this name, however later ones differ."""
        kept: Plain = self._state.setdefault(name, value)
        self.save(over=False)
        return kept

    def count(self, name: str) -> int:
        """How often this search has counted under this name, this time included."""
        self._state[name] = self.counted(name) + 1
        self.save(over=False)
        return self.counted(name)

    def counted(self, name: str) -> int:
        """How often it has."""
        return int(self._state.get(name, 0))

    def spent(self) -> float:
        """Seconds, those of earlier calls included."""
        return float(self._state["spent_s"]) + self.running()

    def running(self) -> float:
        """Seconds of this call."""
        return time.monotonic() - self._begun

    def left(self) -> float:
        """Seconds of the budget; below 0 where more is spent."""
        return self.budget_s - self.spent()

    def save(self, *, over: bool) -> None:
        """Keeps what is spent, so that a killed search goes on with the rest, and whether the search is over."""
        state = {**self._state, "spent_s": self.spent(), "over": over}
        write_whole(self.out / FILE, json.dumps(state).encode())


def _locked(out: Path) -> IO[str]:
    """The lock of a search's folder, beside it, since the folder itself is replaced; TabrankError if it is held."""
    path = out.with_name(f".{out.name}.lock")
    while True:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise TabrankError(f"{out}: cannot be written: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise TabrankError(f"{out}: a search runs there already; wait for it or name another") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()  # whoever held it has just removed it
