import inspect
import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.host.environment import (
    FAST,
    HAPROXY,
    METRICS_PORT,
    ONE_MACHINE,
    OTHERS_MEMORY,
    SEVERAL_MACHINES,
    environment,
    rendered_environment,
)
from serve.operate.host.run_folder import MARKER, RunFolder

SOURCE = str(Path(inspect.getfile(environment)).resolve().parents[3])


def built(folder: Path) -> dict[str, str]:
    return environment(Config(folder / "cluster.yaml", {}, {}, ""), RunFolder(folder), folder / "temp")


def test_every_process_carries_the_marker_and_keeps_it(tmp_path):
    env = built(tmp_path)
    assert env[MARKER] == RunFolder(tmp_path).cluster_id
    assert env["SPT_NOENV"] == "1"


def test_paths_count_from_the_folder_of_the_file(tmp_path):
    assert built(tmp_path)["TABRANK_HOME"] == str(tmp_path)


def test_ray_reads_every_setting_of_its_own():
    """A setting that a new Ray renames would have no effect and raise no error."""
    ray = Path(find_spec("ray").origin).parent
    source = "".join(path.read_text() for path in (ray / "serve/_private").glob("*.py"))
    for name in HAPROXY | FAST | ONE_MACHINE | SEVERAL_MACHINES:
        assert f'"{name}"' in source, name
    raylet = (ray / "core/src/ray/raylet/raylet").read_bytes()
    for name in OTHERS_MEMORY:
        assert name.encode() in raylet, name


def test_the_memory_use_of_other_processes_kills_none_of_ours(tmp_path, monkeypatch):
    env = built(tmp_path)
    assert env["RAY_memory_monitor_refresh_ms"] == env["RAY_worker_oom_score_adjustment"] == "0"
    assert not set(OTHERS_MEMORY) & set(rendered_environment("/home"))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "250")
    assert built(tmp_path)["RAY_memory_monitor_refresh_ms"] == "250"


def test_a_shell_can_tune_but_not_redirect(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    env = built(tmp_path)
    assert env["RAY_SERVE_HAPROXY_NBTHREAD"] == "3"
    assert "RAY_ADDRESS" not in env
    assert env["RAY_AUTH_MODE"] == "token"
    assert len(env["RAY_AUTH_TOKEN"]) == 64
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_spans_are_of_the_service_unless_the_shell_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert built(tmp_path)["OTEL_SERVICE_NAME"] == "tabrank"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    assert built(tmp_path)["OTEL_SERVICE_NAME"] == "ours"


def test_two_clusters_share_no_port(tmp_path):
    env = built(tmp_path)
    names = [name for name in env if name.endswith("_PORT") and name.startswith(("RAY_SERVE_", "TABRANK_"))]
    assert METRICS_PORT in names
    assert len({env[name] for name in names}) == 4


def test_replicas_import_the_tree_that_this_code_lies_in(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert built(tmp_path)["PYTHONPATH"].split(os.pathsep) == [SOURCE, str(tmp_path), "/elsewhere"]


def test_an_installed_wheel_is_found_without_help(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: SOURCE)
    assert built(tmp_path)["PYTHONPATH"] == str(tmp_path)


def test_too_few_open_files_for_haproxy_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_MAXCONN", "2000000000")
    with pytest.raises(TabrankError, match=r"and HAProxy needs 5000000256; raise the limit"):
        built(tmp_path)
