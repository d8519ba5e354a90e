"""A day of calibrated scores raises no alert; a shift of the label rate raises one in an hour."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict

import numpy as np
import pytest
import yaml

from serve.contract.metric_catalog import METRICS
from serve.contract.records import Event
from serve.features.surface import load_surface
from serve.ingest.quality import GRACE_MS, LiveQuality
from serve.log.events import Exposure
from serve.model.artifact import FILES, save
from serve.operate.render.companions import RULES

QUALITY = METRICS["tabrank_quality"]
VERSION = "20260101T000000Z-0001"
MINUTE_MS, DAY, HOURS_AFTER = 60_000, 24 * 60, 2
UNITS = {"d": 1_440, "h": 60, "m": 1, "s": 0}
CANDIDATES = [f"c{k}" for k in range(55)]
EXAMINATION = 1 / (1 + np.arange(55) / 12)


def publish(models):
    cells = {"common": None, "deciles": [0.05, 0.1, 0.15], "shares": [0.0, 0.0, 0.26, 0.28, 0.2, 0.26]}
    files = dict.fromkeys(FILES, b"") | {
        "evaluation.json": json.dumps({"statistics": {"score": cells}}).encode()
    }
    outcomes = {"join": {"scale": 1.0, "examination": {"theta": EXAMINATION.tolist()}}}
    save(models / VERSION, files, {"version": VERSION, "outcomes": outcomes})


def scraped(models, factor, rng):
    """Return the counters at each minute; after a day labels come at `factor` times their rate.

    Scores are the probability of a label if looked at. A ranking comes every minute, and has two
    labels on average.
    """
    quality = LiveQuality(load_surface("spaces"), models)
    totals, series, due = defaultdict(float), defaultdict(dict), []
    num = DAY + HOURS_AFTER * 60
    for minute in range(num):
        now_ms = (minute + 1) * MINUTE_MS
        score = rng.beta(1.5, 12, 55).astype(np.float32)
        request, viewer = f"r{minute}", f"v{minute % 97}"
        arm = {"experiment": None, "arm": "model", "rung": "full", "seen_seq": 1, "model": VERSION}
        due.append((now_ms, Exposure(request, now_ms, viewer, CANDIDATES, score.tobytes(), **arm)))
        rate = score * EXAMINATION * (factor if minute >= DAY else 1.0)
        for k in np.flatnonzero(rng.random(55) < rate):
            ts_ms = int(now_ms + rng.integers(1, 20 * MINUTE_MS))
            due.append((ts_ms, Event(f"{request}-{k}", viewer, CANDIDATES[k], "join", ts_ms, request)))
        quality.add([record for ts_ms, record in due if ts_ms <= now_ms], now_ms)
        due = [(ts_ms, record) for ts_ms, record in due if ts_ms > now_ms]
        for labels, value in quality.take().items():
            totals[labels] += value
        for labels, value in totals.items():
            series[labels][minute] = value
    return [
        {
            "series": name_of(labels),
            "values": " ".join(str(round(values.get(minute, 0.0), 6)) for minute in range(num)),
        }
        for labels, values in series.items()
    ]


def name_of(labels):
    pairs = [("application", "a"), *zip(QUALITY.labels, labels, strict=True)]
    return QUALITY.exported + "{" + ", ".join(f'{name}="{value}"' for name, value in pairs) + "}"


def firing(folder, series, every):
    """Return (alert, minute) for each time at which promtool finds a quality alert firing."""
    for path in RULES:
        groups = yaml.safe_load(path.read_text())["groups"]
        mine = [group for group in groups if group["name"].startswith("tabrank-quality")]
        (folder / path.name).write_text(yaml.safe_dump({"groups": mine}))
    names = [rule["alert"] for rule in mine[0]["rules"]]
    cases = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
        for minute in range(every, DAY + HOURS_AFTER * 60, every)
        for name in names
    ]
    test = {
        "rule_files": [path.name for path in RULES],
        # Alerts may be evaluated before the records of the same time.
        "evaluation_interval": "2m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": cases}],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", folder / "test.yml"], capture_output=True, text=True, check=False
    )
    found = re.findall(r"alertname: (\w+), time: ([\ddhms]+),", done.stdout + done.stderr)
    assert found or done.returncode == 0, done
    return [
        (name, sum(int(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([dhms])", at)))
        for name, at in found
    ]


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_shift_raises_the_calibration_alert_within_the_hour_and_a_healthy_day_raises_none(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    publish(tmp_path)
    series = scraped(tmp_path, 1.5, np.random.default_rng(5))
    closed = DAY + (load_surface("spaces").primary.within_ms + GRACE_MS) // MINUTE_MS
    found = firing(tmp_path, series, every=10)
    assert {name for name, _ in found} == {"TabrankCalibration"}
    assert closed < min(minute for _, minute in found) <= closed + 60
