import fcntl
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from serve.contract.commands import RUN
from serve.contract.errors import TabrankError
from serve.operate.host import run_folder
from serve.operate.host.run_folder import MARKER, RunFolder, wait_for_end
from serve.operate.host.service_state import SupervisedState, Wanted

WANTED = Wanted("/srv/cluster.yaml", {"applications": []})


def test_a_folder_has_one_cluster_id_however_it_is_written(tmp_path):
    (tmp_path / "sub").mkdir()
    assert RunFolder(tmp_path).cluster_id == RunFolder(tmp_path / "sub" / "..").cluster_id
    assert RunFolder(tmp_path).cluster_id != RunFolder(tmp_path / "sub").cluster_id


def test_the_longest_socket_path_fits_what_a_unix_socket_may_have(tmp_path):
    temp = RunFolder(tmp_path).make_temp()
    shutil.rmtree(temp)
    assert len(str(temp / "h" / ("f" * 56) / "admin.sock.4194304.tmp")) <= 107


def test_the_temporary_folder_has_a_new_name_each_time_and_is_found(tmp_path):
    run = RunFolder(tmp_path / "run")
    first = run.make_temp()
    assert first.stat().st_mode & 0o777 == 0o700
    assert RunFolder(tmp_path / "run").temp == first
    assert RunFolder(tmp_path / "other").temp is None
    shutil.rmtree(first)
    assert run.temp is None
    second = run.make_temp()
    assert second != first
    shutil.rmtree(second)


def test_a_held_temporary_folder_is_locked_against_cleaners(tmp_path):
    run = RunFolder(tmp_path)
    run.hold_temp()
    folder = run.make_temp()
    cleaner = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(cleaner, fcntl.LOCK_UN)
        run.hold_temp()
        with pytest.raises(BlockingIOError):
            fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(cleaner)
        shutil.rmtree(folder)


def test_a_temporary_folder_of_another_user_is_not_taken_for_ours(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    folder = run.make_temp()
    monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
    assert run.temp is None
    shutil.rmtree(folder)


def session(run, **logs):
    """Make a temporary folder with logs, as Ray leaves it."""
    folder = run.make_temp() / "r" / "session_latest" / "logs" / "serve"
    folder.mkdir(parents=True)
    for at, (name, content) in enumerate(logs.items()):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (at, at))


def test_the_newest_logs_of_the_last_sessions_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("serve.operate.host.run_folder.KEPT_BYTES", 10)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    assert run.keep_logs() is None
    for number in range(5):
        (run.kept_logs / f"2026010{number}T000000Z").mkdir(parents=True)
    (run.kept_logs / "2025-notes").touch()
    session(run, oldest=b"aaaaa", older=b"bbbbbb", newest=b"cccccc")
    kept = run.keep_logs()
    shutil.rmtree(run.temp)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        "serve_older": b"bbbb",
        "serve_newest": b"cccccc",
    }
    assert {path.stat().st_mode & 0o077 for path in (kept, *kept.rglob("*"))} == {0}
    assert len(list(run.kept_logs.glob("*/"))) == 3


def test_the_error_of_a_full_disk_names_the_file_and_the_remedy(tmp_path):
    run, before = RunFolder(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    run.write(SupervisedState("ready"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(TabrankError, match=r"service\.json\.new: .*; free some space"):
            run.write(SupervisedState("failed"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.service() == SupervisedState("ready")


def test_written_state_is_read_back_and_a_cut_off_file_counts_as_none(tmp_path):
    run = RunFolder(tmp_path)
    assert (run.service(), run.wanted()) == (None, None)
    run.write(SupervisedState("ready", document={"applications": []}))
    assert run.service() == SupervisedState("ready", document={"applications": []})
    run.save_wanted(WANTED)
    assert run.wanted() == WANTED
    for name in ("service.json", "wanted.json"):
        (tmp_path / name).write_text('{"config": ')
    assert (run.service(), run.wanted()) == (None, None)


def test_a_service_of_another_version_is_refused_with_the_command_that_restarts_it(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "service.json").write_text('{"state": "ready", "config": "/srv/a.yaml", "slots": 2}')
    with pytest.raises(
        TabrankError, match=rf"restart the service: run `up` again, with --yes and --run {tmp_path}$"
    ):
        run.service()


def test_the_command_that_restarts_names_the_file_and_another_run_folder(tmp_path):
    assert RunFolder(RUN).command("up", Path("my file.yaml")) == "python -m serve up 'my file.yaml'"
    command = RunFolder(tmp_path).command("up", Path("cluster.yaml"))
    assert command == f"python -m serve up cluster.yaml --run {tmp_path}"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    run = RunFolder(tmp_path)
    for name, read in (("service.json", run.service), ("wanted.json", run.wanted)):
        (tmp_path / name).mkdir()
        with pytest.raises(TabrankError, match=rf"{name}: Is a directory; make it a file"):
            read()


@pytest.mark.parametrize(("ends_after_s", "is_given_up"), [(12.0, False), (20.0, True)])
def test_a_killed_process_has_time_to_end_on_a_busy_machine(ends_after_s, is_given_up, monkeypatch):
    now_s = 0.0

    def wait(processes, timeout_s):
        nonlocal now_s
        now_s += timeout_s

    killed = SimpleNamespace(pid=42, name=lambda: "raylet", kill=lambda: None)
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(run_folder, "wait_for_end", wait)
    expected = pytest.raises(TabrankError, match="42 cannot be ended") if is_given_up else nullcontext()
    with expected:
        assert set(run_folder.kill(lambda: [killed] if now_s < ends_after_s else [])) == {"raylet"}


def test_processes_are_found_by_the_marker_alone(tmp_path):
    run = RunFolder(tmp_path)
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(command, **pipes, env={**os.environ, MARKER: run.cluster_id}) as ours,
        subprocess.Popen(command, **pipes, env={**os.environ, MARKER: "another"}) as other,
    ):
        # A process that has just started has no readable environment yet.
        assert (ours.stdout.readline(), other.stdout.readline()) == (b"\n", b"\n")
        assert [process.pid for process in run.processes()] == [ours.pid]
        assert run.supervisors() == []
        ours.kill()
        other.kill()
    assert run.processes() == []


def test_two_commands_cannot_hold_one_folder(tmp_path):
    run = RunFolder(tmp_path)
    with run.locked(1.0), pytest.raises(TabrankError, match="another up or down runs"), run.locked(0.0):
        pass
    with run.locked(0.0):
        pass


def test_files_that_may_hold_a_password_are_private(tmp_path):
    run = RunFolder(tmp_path)
    for _ in range(2):
        run.save_wanted(WANTED)
        run.write(SupervisedState())
    modes = [(tmp_path / name).stat().st_mode & 0o077 for name in ("wanted.json", "service.json")]
    assert modes == [0, 0]


def test_a_process_that_has_ended_and_is_not_reaped_is_not_waited_for():
    child = "import subprocess; p = subprocess.Popen(['true']); print(p.pid, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", child], **pipes) as parent:
        begin, ended = time.monotonic(), psutil.Process(int(parent.stdout.readline()))
        wait_for_end([ended], 5.0)
        assert time.monotonic() - begin < 1.0
        assert ended.status() == psutil.STATUS_ZOMBIE
        parent.communicate(b"\n")
