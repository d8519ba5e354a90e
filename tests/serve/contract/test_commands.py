"""Exit codes and messages of commands, tested on a small application of `Commands`."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from serve.contract.commands import Commands, Parts, command_line
from serve.contract.errors import TabrankError
from serve.contract.validation import spelled

app, group = typer.Typer(cls=Commands, no_args_is_help=True), typer.Typer()
app.add_typer(group, name="group")


@app.command()
def end(how: str, times: int = 1) -> None:
    if how == "did not hold":
        sys.exit(1)
    if how == "chose 1":
        raise typer.Exit(times)
    if how == "mistake":
        raise TabrankError("--how mistake: name another way")
    if how == "bug":
        {}["no such key"]
    if how == "prints":
        print("much of it")
        raise typer.Exit(times)
    if how.isdecimal():
        os.kill(os.getpid(), int(how))


@group.command()
def bug() -> None:
    raise ValueError("of a group's command")


@group.command()
def other() -> None:
    pass


with_extra = command_line("An example.", extra="training")


@with_extra.command()
def needs(module: str) -> None:
    importlib.import_module(module)


@with_extra.command()
def unused() -> None:
    pass


@pytest.fixture(autouse=True)
def handlers():
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


def ended(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stderr


def test_a_command_that_says_so_did_not_hold_and_no_other_exits_with_1():
    assert ended("end", "well") == (0, "")
    assert ended("end", "did not hold") == ended("end", "chose 1") == (1, "")


def test_a_users_mistake_is_one_sentence():
    assert ended("end", "mistake") == (2, "--how mistake: name another way\n")


@pytest.mark.parametrize(
    ("arguments", "last"),
    [(("end", "bug"), "KeyError: 'no such key'"), (("group", "bug"), "ValueError: of a group's command")],
)
def test_what_nobody_foresaw_is_a_traceback_and_no_verdict(arguments, last):
    code, said = ended(*arguments)
    assert code == 2
    assert said.startswith("Traceback")
    assert said.splitlines()[-1] == last


def test_wrong_usage_says_how_it_is_used_and_help_is_no_failure():
    assert ended("--help") == ended("end", "--help") == (0, "")
    for wrong in (("end",), ("end", "well", "--times", "x"), ("end", "well", "--no"), ("no such command",)):
        code, said = ended(*wrong)
        assert code == 2
        assert "Usage" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_sentence(number):
    code, said = ended("end", str(int(number)))
    assert code == 2
    assert said.startswith("interrupted")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("code", ["0", "1"])
def test_a_reader_that_is_gone_is_no_failure_worth_a_traceback(code):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, __file__, "end", "prints", "--times", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""


if __name__ == "__main__":
    app()


def test_a_part_that_takes_a_second_or_more_says_how_long(monkeypatch):
    clock = iter([0.0, 0.0, 65.2, 65.2, 65.9, 65.9, 70.0])
    monkeypatch.setattr("serve.contract.commands.time.monotonic", lambda: next(clock))
    shown = []
    parts = Parts(shown.append)
    parts.begin("reading a log whose name is much too long to be said again in full")
    parts.begin("fitting")
    parts.begin("measuring it")
    parts.end()
    assert shown == [
        "reading a log whose name is much too long to be said again in full",
        "reading a log whose name is much too long to be said again …: took 1 min 5 s",
        "fitting",
        "measuring it",
        "measuring it: took 4.1 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4567, "0.457 s"),
        (59.94, "59.9 s"),
        (59.96, "60 s"),
        (90, "1 min 30 s"),
        (1800, "30 min"),
        (7_500, "2 h 5 min"),
        (86_400, "1 d"),
        (90 * 86_400 + 7_200, "90 d 2 h"),
    ],
)
def test_a_duration_is_told_in_units_for_people(seconds, text):
    assert spelled(seconds) == text


def test_a_missing_package_is_told_with_the_extra_that_brings_it():
    done = CliRunner().invoke(with_extra, ["needs", "no_such_package.part"])
    told = "needs needs the package no_such_package; run `python -m pip install 'tabrank[training]'`\n"
    assert (done.exit_code, done.stderr) == (2, told)


def test_a_missing_module_of_a_package_that_is_there_is_a_bug():
    done = CliRunner().invoke(with_extra, ["needs", "serve.no_such_module"])
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "pip install" not in done.stderr
