"""Write four CSV files of an invented bakery, as an export from your own database could look.

`python make_csv.py FOLDER`. Viewers see five pastries at a time, and order those of their taste.
"""

import csv
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

KINDS = ("bread", "cake", "tart", "bun")
MINUTE_MS = 60_000


def main(folder: Path, *, num_rankings: int = 3_000) -> None:
    """Write `viewers`, `candidates`, `exposures` and `events`."""
    rng = random.Random(0)
    start_ms = time.time_ns() // 1_000_000 - (num_rankings + 10) * MINUTE_MS
    tastes = {f"v{i}": rng.choice(KINDS) for i in range(300)}
    pastries = {f"p{i}": (rng.choice(KINDS), rng.randint(2, 9)) for i in range(60)}
    exposures, events = [], []
    for number in range(num_rankings):
        ts_ms, viewer = start_ms + number * MINUTE_MS, rng.choice(list(tastes))
        shown = rng.sample(list(pastries), 5)
        exposures.append((f"r{number}", ts_ms, viewer, "|".join(shown)))
        for pastry in shown:
            kind, price = pastries[pastry]
            if rng.random() < (0.5 if kind == tastes[viewer] else 0.1) / (1 + price / 10):
                ordered_ms = ts_ms + rng.randint(5_000, 5 * MINUTE_MS)
                events.append((f"e{len(events)}", ordered_ms, viewer, pastry, "order", f"r{number}"))
    folder.mkdir()
    write(folder / "viewers.csv", "id,taste", tastes.items())
    write(folder / "candidates.csv", "id,kind,price", ((p, *fields) for p, fields in pastries.items()))
    write(folder / "exposures.csv", "request_id,ts_ms,viewer,candidates", exposures)
    write(folder / "events.csv", "id,ts_ms,viewer,candidate,kind,request_id", events)


def write(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    """Write one CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
