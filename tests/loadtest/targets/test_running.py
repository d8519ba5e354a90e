"""Tests of the metrics of a running service."""

from __future__ import annotations

import json

import pytest

from loadtest.errors import LoadtestError
from loadtest.measure.cluster import find_cluster
from loadtest.targets.running import Target, bound_of_share_ms, running_url, total
from serve.operate.status.scrape import Page, parse

PAGE = """# HELP ray_tabrank_x_total What it is.
# TYPE ray_tabrank_x_total counter
ray_tabrank_x_total{application="spaces",replica="a"} 3.0
ray_tabrank_x_total{application="spaces",replica="b"} 4.0
ray_tabrank_s_bucket{le="0.005",replica="a"} 90
ray_tabrank_s_bucket{le="0.01",replica="a"} 99
ray_tabrank_s_bucket{le="+Inf",replica="a"} 100
no number here
ray_tabrank_bare 1e3
"""
NOTHING = Page(0.0)


def test_a_metric_is_summed_over_the_rows_with_the_labels():
    page = parse(PAGE, 0.0)
    assert total(page, "ray_tabrank_x_total") == 7
    assert total(page, "ray_tabrank_x_total", replica="b") == 4
    assert total(page, "ray_tabrank_bare") == 1000
    assert total(page, "ray_tabrank_none") == 0


def test_the_bound_within_which_a_share_of_the_gain_lies():
    page = parse(PAGE, 0.0)
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_s_bucket", 0.9) == 5
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_s_bucket", 0.99) == 10
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_s_bucket", 1.0) == float("inf")
    assert bound_of_share_ms(page, page, "ray_tabrank_s_bucket", 0.99) is None
    assert bound_of_share_ms(NOTHING, page, "ray_tabrank_none", 0.99) is None


def test_where_no_page_answers_there_is_nothing_on_it(tmp_path):
    target = Target("http://127.0.0.1:1", tmp_path, "none")
    assert target.metrics().values == {}
    target.run.mkdir()
    (target.run / "service.json").write_text('{"metrics_url": "http://127.0.0.1:1/metrics"}')
    assert target.metrics().values == {}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Write the state of var/run of the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("serve.operate.host.run_folder.RunFolder.supervisors", lambda *_: [1])

    def write(state, *routes):
        app = {"import_path": "serve.app:build", "deployments": {"Scorer": {"replicas": {"RUNNING": 1}}}}
        apps = {f"app{i}": {**app, "route_prefix": route} for i, route in enumerate(routes)}
        (tmp_path / "var/run").mkdir(parents=True)
        service = {"state": state, "url": "http://127.0.0.1:8123", "applications": apps}
        (tmp_path / "var/run/service.json").write_text(json.dumps(service))

    return write


@pytest.mark.parametrize("route", ["/", "/spaces"])
def test_the_service_of_var_run_is_found(folder, route):
    folder("ready", route)
    url = running_url(None)
    assert url == "http://127.0.0.1:8123" + route.rstrip("/")
    # Its replicas are counted too.
    assert find_cluster(url) is not None
    assert find_cluster("http://127.0.0.1:81234") is None


def test_a_named_url_counts_and_without_a_service_the_default(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert running_url(None) == "http://127.0.0.1:8000"
    folder("ready", "/")
    assert running_url("http://other:1") == "http://other:1"


@pytest.mark.parametrize(
    ("state", "routes", "message"),
    [
        ("failed", ["/"], "var/run: the service is failed; start one with `python -m serve up`"),
        ("ready", ["/a", "/b"], "has http://127.0.0.1:8123/a, http://127.0.0.1:8123/b; "),
        ("ready", [], "has no ranking application; start one"),
    ],
)
def test_a_service_that_is_not_one_that_answers_is_refused_with_the_remedy(folder, state, routes, message):
    folder(state, *routes)
    with pytest.raises(LoadtestError) as error:
        running_url(None)
    assert message in str(error.value)
