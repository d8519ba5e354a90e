"""The table `consequence.toml`: what a change of each field of `cluster.yaml` does to a service.

`tests/serve/operate/diff/test_consequences.py` changes each field on a running service and reads in
Serve's own log what Serve did. If another version of Ray does something else, this test fails.
"""

from __future__ import annotations

import tomllib
from enum import IntEnum
from pathlib import Path as FilePath

from serve.config.known_keys import APPLICATION, DEPLOYMENT
from serve.operate.host.field import Path


class Consequence(IntEnum):
    """Effect of a change on the running service, the mildest first."""

    NOTHING = 0
    IN_PLACE = 1
    ADDED = 2
    ROLLING = 3
    REBUILT = 4
    DELETED = 5
    RESTART = 6

    @property
    def sentence(self) -> str:
        """The consequence in words."""
        return str(_FILE["sentences"][self.name.lower()])


SCALING: Path = (*DEPLOYMENT, "autoscaling_config")
# Stands for a change of `num_replicas` to or from `auto`, which turns autoscaling on or off.
# Replicas then begin or stop to report their load.
AUTO: Path = (*DEPLOYMENT, "num_replicas=auto")
LEVELS = {"file": (), "application": APPLICATION, "deployment": DEPLOYMENT, "autoscaling_config": SCALING}
_FILE = tomllib.loads(FilePath(__file__).with_suffix(".toml").read_text())
FIELDS = {
    (*LEVELS[level], field): Consequence[consequence.upper()]
    for level, rows in _FILE["fields"].items()
    for consequence, fields in rows.items()
    for field in fields
}
# Ray does not notice a change of these fields alone. It applies it with the next change of the
# deployment.
IGNORED_ALONE = tuple(
    name for name in _FILE["fields"]["deployment"]["rolling"] if name != "ray_actor_options"
)
NOTES = {tuple(field.split(".")): note for field, note in _FILE["notes"].items()}
# The note about a field that the table lacks, such as one of another version of Ray.
UNKNOWN = "an unknown field, so the worst is assumed"


def row_of(field: Path) -> tuple[Consequence, str]:
    """Return the consequence of a change of a field, which its keys name, and a note."""
    for depth in range(len(field), 0, -1):
        known = field[:depth]
        if known in FIELDS and (depth == len(field) or known not in LEVELS.values()):
            return FIELDS[known], NOTES.get(known, "")
    below = field[: len(APPLICATION)] == APPLICATION
    return Consequence.REBUILT if below else Consequence.RESTART, UNKNOWN
