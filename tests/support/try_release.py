"""Try the wheels of a folder as a user would: `python -m tests.support.try_release DIST`.

It installs `tabrank[training]` and `tabrank-client` with pip into environments of their own. It
does so without the lock, because a user installs what the ranges in `pyproject.toml` allow. In an
empty folder it then runs README's commands for your own data on a small log of a shop, from the CSV
file to the first ranking, and asks the service once more with the client. It prints the seconds of
each step and exits with 1 at the first step that fails. Port 8000 must be free.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.check_dist import new_environment, pip
from tests.support.shop_log import write_flat_shop

ROOT = Path(__file__).parents[2]
# The search of README takes ten minutes; this one only has to end with a model.
BUDGET = "30s"
ASK = """
import json
from tabrank_client import Client
request = json.load(open("my/request.json"))
with Client("http://127.0.0.1:8000", timeout_s=5) as client:
    answer = client.rank(request["viewer"], request["candidates"])
print(answer.rung, *(each.candidate for each in answer.ranking[:5]))
"""


def own_data() -> list[str]:
    """Return README's commands for your own data, a line each, with a short search."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (block,) = (block for block in blocks if "training import csv" in block)
    lines = block.replace("\\\n", "").replace(" search ", f" search --budget {BUDGET} ").splitlines()
    # A search this short may find no model that beats "most popular": publish what it found.
    publish = "python -m training publish --model my/search --models my/models"
    return [f"{line} || {{ [ $? = 1 ] && {publish}; }}" if " search " in line else line for line in lines]


def step(name: str, command: list[str], folder: Path, python: Path) -> str:
    """Run one step in `folder`, with `python` first on the path; print its seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    print(f"{time.perf_counter() - start:7.1f} s  {name}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
    return done.stdout


def main(dist: Path) -> None:
    """Try the wheels of `dist`."""
    (wheel,) = dist.resolve().glob("tabrank-*.whl")
    (client,) = dist.resolve().glob("tabrank_client-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "empty")
        work.mkdir()
        write_flat_shop(work / "rows.csv", slates=2_500)
        (Path(folder) / "callers").mkdir()
        caller, python = new_environment(Path(folder) / "callers"), new_environment(Path(folder))
        step("pip install tabrank[training]", [*pip(python), f"{wheel}[training]"], work, python)
        step("pip install tabrank-client", [*pip(caller), str(client)], work, caller)
        try:
            for line in own_data():
                out = step(line[:78], ["bash", "-euc", line], work, python)
            print(f"{out[:400].strip()} …")
            print(step("rank with the client", [str(caller), "-c", ASK], work, caller))
        finally:
            step("python -m serve down", [str(python), "-m", "serve", "down"], work, python)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
