"""The paths that need no key, as SECURITY.md lists them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from serve.http.app import OPEN
from serve.http.docs import FILES

ROOT = Path(__file__).parents[3]


def test_security_names_every_path_that_answers_without_a_key():
    # The part of a replica that answers before our application does.
    replica = Path(find_spec("ray.serve").origin).parent / "_private" / "replica.py"
    of_ray = set(re.findall(r'"(/-/[a-z]+)"', replica.read_text()))
    assert of_ray
    security = (ROOT / "SECURITY.md").read_text()
    sentence = re.search(r"every request needs one, except those for(.*?)\. These show", security, re.DOTALL)
    assert set(re.findall(r"`(/[^`]*)`", sentence[1])) == (OPEN - set(FILES)) | of_ray
    blocked = re.search(r"^4\. Block (.*)", security, re.MULTILINE)
    named = set(re.findall(r"`(/[^`]*)`", blocked[1]))
    assert all(any(path.startswith(one) for one in named) for path in OPEN | of_ray)
