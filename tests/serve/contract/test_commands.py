"""Exit codes and messages of commands, tested on a small application of `Commands`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from serve.contract.commands import Commands
from serve.contract.errors import TabrankError

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
