"""Declared table, in `consequence.toml`: what a change of `cluster.yaml` does to the service.

`tests/serve/operate/diff/test_consequences.py` makes the change of each field on a running service
and reads in Serve's own log what Serve did, so a row that another version of Ray contradicts fails.
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
        """Its wording for people."""
        return str(_FILE["sentences"][self.name.lower()])


SCALING: Path = (*DEPLOYMENT, "autoscaling_config")
# To or from this value, `num_replicas` turns autoscaling on or off, and replicas report their load.
AUTO: Path = (*DEPLOYMENT, "num_replicas=auto")
LEVELS = {"file": (), "application": APPLICATION, "deployment": DEPLOYMENT, "autoscaling_config": SCALING}
_FILE = tomllib.loads(FilePath(__file__).with_suffix(".toml").read_text())
FIELDS = {
    (*LEVELS[level], field): Consequence[consequence.upper()]
    for level, rows in _FILE["fields"].items()
    for consequence, fields in rows.items()
    for field in fields
}
# Ray does not look for changes of these. It applies them with the next change of the deployment.
IGNORED_ALONE = tuple(
    name for name in _FILE["fields"]["deployment"]["rolling"] if name != "ray_actor_options"
)
NOTES = {tuple(field.split(".")): note for field, note in _FILE["notes"].items()}
# For a field that the table does not have, such as one of another version of Ray.
UNKNOWN = "an unknown field, so the worst is assumed"


def row_of(field: Path) -> tuple[Consequence, str]:
    """Return the consequence of a change of a field, which its keys name, and a note."""
    for depth in range(len(field), 0, -1):
        known = field[:depth]
        if known in FIELDS and (depth == len(field) or known not in LEVELS.values()):
            return FIELDS[known], NOTES.get(known, "")
    below = field[: len(APPLICATION)] == APPLICATION
    return Consequence.REBUILT if below else Consequence.RESTART, UNKNOWN
