"""Write the CSV file of an invented bakery: `python make_csv.py FILE`.

An export from your own database could look like this. Customers see five pastries at a time, and
mostly order those of their taste.
"""

import csv
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

KINDS = ("bread", "cake", "tart", "bun")
MINUTE = timedelta(minutes=1)


def main(path: Path, *, num_rankings: int = 3_000) -> None:
    """Write one row for each pastry that was shown."""
    rng = random.Random(0)
    start = datetime.now(UTC) - (num_rankings + 10) * MINUTE
    tastes = {i: rng.choice(KINDS) for i in range(300)}
    pastries = {i: (rng.choice(KINDS), rng.randint(2, 9)) for i in range(60)}
    rows = []
    for number in range(num_rankings):
        shown_at, viewer = start + number * MINUTE, rng.choice(list(tastes))
        for pastry in rng.sample(list(pastries), 5):
            kind, price = pastries[pastry]
            ordered = rng.random() < (0.5 if kind == tastes[viewer] else 0.1) / (1 + price / 10)
            rows.append((shown_at.isoformat(), viewer, tastes[viewer], pastry, kind, price, ordered))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("at", "customer", "taste", "pastry", "kind", "price", "order"))
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
