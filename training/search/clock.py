"""The budget of a search: what is spent of it, over all calls, kept with what is searched."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from serve.errors import TabrankError
from serve.strict import refuse_file

FILE = "search.json"


class Clock:
    """How much of the budget is spent, over all calls; kept in the search's folder with what is searched."""

    def __init__(self, out: Path, budget_s: float) -> None:
        """Raises TabrankError where `out` is there and holds no search."""
        refuse_file(out)
        self.out, self.budget_s = out, budget_s
        self._begun = time.monotonic()
        self._state: dict[str, Any] = {"spent_s": 0.0}
        if out.exists() and not (out / FILE).exists() and any(out.iterdir()):
            raise TabrankError(
                f"{out}: exists already and holds no search; name another folder or remove it first"
            )
        if (out / FILE).exists():
            try:
                self._state = json.loads((out / FILE).read_text())
            except (OSError, ValueError) as error:
                raise TabrankError(f"{out / FILE}: cannot be read: {error}; remove {out}") from error

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

    def keep(self, name: str, value: int) -> int:
        """What the first call of this search gave under this name, however later ones differ."""
        kept = int(self._state.setdefault(name, value))
        self.save(over=False)
        return kept

    def spent(self) -> float:
        """Seconds, those of earlier calls included."""
        return float(self._state["spent_s"]) + time.monotonic() - self._begun

    def save(self, *, over: bool) -> None:
        """Keeps what is spent, so that a killed search goes on with the rest, and whether the search is over."""
        partial = self.out / f"{FILE}.partial"
        partial.write_text(json.dumps({**self._state, "spent_s": self.spent(), "over": over}))
        partial.replace(self.out / FILE)
