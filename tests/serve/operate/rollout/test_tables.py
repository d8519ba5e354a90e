"""Tables of `python -m serve models`."""

from __future__ import annotations

from serve.operate.rollout.tables import read_shifts, shifts
from serve.operate.status.scrape import parse


def test_score_shifts_of_two_applications_are_kept_apart():
    labels = 'new="v2",old="v1",measure="rows"'
    page = "".join(
        f'ray_tabrank_pairs_total{{application="{app}",replica="{i}",{labels}}} {rows}\n'
        for i, (app, rows) in enumerate([("a", 3.0), ("b", 5.0), ("a", 4.0)])
    )
    found = read_shifts(parse(page, 0.0))
    assert [(one["new"], one["old"], one["application"], one["rows"]) for one in found] == [
        ("v2", "v1", "b", 5),
        ("v2", "v1", "a", 7),
    ]
    head, *rows = shifts(found).splitlines()
    assert head.split()[:4] == ["new", "old", "application", "rows"]
    assert [row.split()[2:4] for row in rows] == [["b", "5"], ["a", "7"]]
