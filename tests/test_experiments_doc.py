"""The guide on experiments: its worked example prints what the page shows."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from serve.config.settings import Experiment
from serve.contract.typed_reader import read
from serve.features.surface import load_surface
from tests.support.experiment_log import write_experiment
from training.experiment.declared import Declared
from training.experiment.page import text
from training.experiment.report import report

GUIDE = (Path(__file__).parents[1] / "docs" / "experiments.md").read_text()


def fenced(kind=""):
    """Return the blocks of code between fences of this kind."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", GUIDE, re.M | re.S)
    return [textwrap.dedent(block) for name, block in blocks if name == kind]


@pytest.fixture(scope="module")
def declaration():
    given = yaml.safe_load(fenced("yaml")[0])["experiment"]
    return Declared(**vars(read(Experiment, given, "guide")), source="cluster.yaml")


def printed(log, declaration):
    return text(report(log, declaration, load_surface("spaces"))).splitlines()


def missing(shown, lines):
    """Return the lines of a block that no line begins with, up to the first ellipsis in each."""
    starts = [line.split("…")[0].rstrip() for line in shown.splitlines()]
    return [start for start in starts if not any(line.startswith(start) for line in lines)]


@pytest.mark.integration
@pytest.mark.no_ray
def test_the_worked_example_prints_the_report_that_the_page_shows(tmp_path, declaration):
    example = re.search(r"write_experiment\(log, (.*)\)", GUIDE).group(1)
    options = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", example)}
    num = {name: int(options.pop(name)) for name in ("num_viewers", "days", "before_days")}
    assert example.endswith("declaration=launch")
    log = write_experiment(tmp_path / "log", **num, **options, declaration=declaration)
    shown, early, uneven = fenced()
    assert missing(shown, printed(log, declaration)) == []
    for path in log.glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less(table["ts_ms"], declaration.start_ms + 86_400_000)), path)
    assert missing(early, printed(log, declaration)) == []
    skewed = write_experiment(
        tmp_path / "uneven", num_viewers=4_000, days=14, split=0.55, declaration=declaration
    )
    assert missing(uneven, printed(skewed, declaration)) == []


def test_a_line_that_is_not_printed_is_found():
    assert missing("won: +1 %, …\nlost: 2", ["won: +1 %, by chance", "lost: 3"]) == ["lost: 2"]
