"""The rules, alerts and dashboard agree with each other, the metrics, the runbook and the SLO."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from loadtest.workload.profiles import load_slo
from serve.config.settings import UserConfig
from serve.contract.metric_catalog import METRICS
from serve.operate.render.companions import OBSERVE, RULES
from tests.support.monitoring_rules import DASHBOARD, alerts, expressions, panels, records, rules

ROOT = Path(__file__).parents[4]
RUNBOOK = ROOT / "docs" / "runbook.md"


def anchors(text):
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.M)
    }


def test_each_alert_has_a_section_in_the_runbook_and_the_reverse():
    text = RUNBOOK.read_text()
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    named = {alert["alert"] for alert in alerts()}
    assert named == set(re.findall(r"^### (.*)$", text, re.M))
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        # Alertmanager shows it to somebody who has no checkout.
        assert page == f"{source}/blob/main/{RUNBOOK.relative_to(ROOT)}"
        assert anchor in anchors(text), alert["alert"]


def test_every_link_of_the_two_documents_has_a_target():
    for document in (RUNBOOK, ROOT / "docs" / "metrics.md"):
        for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def test_every_metric_in_an_expression_exists_and_each_is_used():
    kinds = {metric.exported: metric.kind for metric in METRICS.values()}
    asked = {name for text in expressions() for name in re.findall(r"\bray_tabrank_\w+", text)}
    series = {name: re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert set(series.values()) == set(kinds)
    for name, exported in series.items():
        assert (name != exported) == (kinds[exported] == "histogram"), name


def test_every_bound_in_an_expression_is_one_of_its_histogram():
    bounds = {metric.exported: {*map(str, metric.bounds)} for metric in METRICS.values()}
    asked = {
        found for text in expressions() for found in re.findall(r'(\w+)_bucket\{[^}]*le="([^"]+)"', text)
    }
    assert asked
    assert all(le in bounds[name] for name, le in asked)


def test_every_record_in_an_expression_exists_and_each_is_used():
    named = {rule["record"] for rule in records()}
    asked = {name for text in expressions() for name in re.findall(r"\btabrank:[\w:]+", text)}
    assert asked == named


def test_the_numbers_are_those_of_the_slo():
    slo, text = load_slo(), RULES[1].read_text() + DASHBOARD.read_text()
    by_name = {rule["record"]: rule["expr"] for rule in records()}
    assert f'le="{slo.p99_ms / 1e3}"' in by_name[f"tabrank:slow_{slo.p99_ms:g}ms:ratio_rate1h"]
    assert f'le="{slo.p90_ms / 1e3}"' in by_name[f"tabrank:slow_{slo.p90_ms:g}ms:ratio_rate1h"]
    not_full = 1 - slo.min_full_share
    budgets = {"TabrankLatencyP99": 0.01, "TabrankLatencyP90": 0.1}
    budgets |= {"TabrankNotFull": not_full, "TabrankFailing": not_full}
    for alert in alerts():
        factors = re.findall(r"> ([\d.]+) \* ([\d.]+)", alert["expr"])
        assert len(factors) == (2 if alert["alert"] in budgets else 0), "a short and a long window each"
        for factor, budget in factors:
            assert float(budget) == pytest.approx(budgets[alert["alert"]])
            assert float(factor) * float(budget) < 0.9, "a burn rate that cannot be reached never fires"
    assert set(re.findall(r"tabrank:slow_(\d+)ms", text)) == {f"{slo.p90_ms:g}", f"{slo.p99_ms:g}"}
    assert f"tabrank:freshness_seconds:max > {UserConfig().stale_after_ms / 1e3:g}" in text


def test_an_alert_uses_records_alone_which_always_have_a_series():
    words = {"and", "or", "unless", "on", "application", "max_over_time", "sqrt", "sum", "m"}
    for alert in alerts():
        names = set(re.findall(r"[A-Za-z_][\w:]*", alert["expr"])) - words
        assert names <= {rule["record"] for rule in records()}, alert["alert"]


def test_each_series_on_which_an_alert_stands_is_missed_if_ray_drops_it():
    by_name = {rule["record"]: rule["expr"] for rule in records()}

    def series(expression):
        below = (series(by_name[name]) for name in re.findall(r"\btabrank:[\w:]+", expression))
        return set(re.findall(r"\b(?:ray|haproxy)_\w+|\bup\b", expression)).union(*below)

    others = [alert["expr"] for alert in alerts() if alert["alert"] != "TabrankSeriesAbsent"]
    absent = re.findall(r"absent\((\w+)\)", by_name["tabrank:series:absent"])
    named = re.findall(r'"series", "(\w+)"', by_name["tabrank:series:absent"])
    # TabrankNoMetrics is about two of these; the third begins with the first ended process.
    elsewhere = {"up", "ray_tabrank_freshness_seconds", "ray_unintentional_worker_failures_total"}
    assert sorted(absent) == sorted(named) == sorted(set().union(*map(series, others)) - elsewhere)


@pytest.mark.integration
@pytest.mark.no_ray
def test_each_alert_fires_for_its_cause_and_is_silent_without_it():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    cases = sorted(OBSERVE.glob("*_test.yml"))
    done = subprocess.run(["promtool", "test", "rules", *cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"]
        for file in cases
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tested == {alert["alert"] for alert in alerts()}


def test_each_alert_has_a_severity_and_an_explanation():
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}


def test_panels_have_unique_titles_and_do_not_overlap():
    shown = json.loads(DASHBOARD.read_text())["panels"]
    titles = [panel["title"] for panel in shown]
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in shown}) == len(shown)
    taken = set()
    for panel in shown:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert {expression for panel in panels() for expression in panel} <= set(expressions())


def test_rules_and_alerts_are_in_files_of_their_own():
    assert {bool(rule.get("alert")) for rule in rules(RULES[0])} == {False}
    assert {bool(rule.get("alert")) for rule in rules(RULES[1])} == {True}
