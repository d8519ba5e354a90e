import os
import subprocess
import sys

import pytest

from serve.errors import TabrankError
from serve.run_folder import MARKER, RunFolder


def test_a_folder_has_one_cluster_id_however_it_is_written(tmp_path):
    (tmp_path / "sub").mkdir()
    assert RunFolder.of(tmp_path) == RunFolder.of(tmp_path / "sub" / "..")
    assert RunFolder.of(tmp_path).cluster_id != RunFolder.of(tmp_path / "sub").cluster_id


def test_the_longest_socket_path_fits_what_a_unix_socket_may_have(tmp_path):
    node_id = "f" * 56
    assert len(str(RunFolder.of(tmp_path).temp / "h" / node_id / "admin.sock.4194304.tmp")) <= 107


def test_what_is_written_is_read_back_and_rubbish_counts_as_nothing(tmp_path):
    run = RunFolder.of(tmp_path)
    assert run.service() == {}
    run.write({"state": "ready"})
    assert run.service() == {"state": "ready"}
    run.keep({"applications": []})
    assert run.deployed() == {"applications": []}
    (tmp_path / "service.json").write_text('{"state": ')
    (tmp_path / "deployed.yaml").write_text("applications: [")
    assert (run.service(), run.deployed()) == ({}, {})


def test_processes_are_found_by_the_marker_alone(tmp_path):
    run = RunFolder.of(tmp_path)
    command = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, MARKER: run.cluster_id}) as ours,
        subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, MARKER: "another"}) as other,
    ):
        assert [process.pid for process in run.processes()] == [ours.pid]
        assert run.supervisors() == []
        ours.kill()
        other.kill()
    assert run.processes() == []


def test_two_commands_cannot_hold_one_folder(tmp_path):
    run = RunFolder.of(tmp_path)
    with run.locked(1.0), pytest.raises(TabrankError, match="another up or down is at work"), run.locked(0.0):
        pass
    with run.locked(0.0):
        pass


def test_what_may_hold_a_password_is_for_its_owner_alone(tmp_path):
    run = RunFolder.of(tmp_path)
    for _ in range(2):
        run.keep({"applications": []})
        run.want(tmp_path / "cluster.yaml", "", {"applications": []})
    assert [(tmp_path / name).stat().st_mode & 0o077 for name in ("deployed.yaml", "wanted.yaml")] == [0, 0]
