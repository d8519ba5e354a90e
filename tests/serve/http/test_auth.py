"""API keys: their rates, on an injected clock, and requests without keys."""

from __future__ import annotations

import contextlib
import hashlib
import json

import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.settings import ApiKey, UserConfig
from serve.contract.errors import RequestError
from serve.http.auth import Authenticator, mint


def key_of(secret, requests_per_s=10.0):
    return ApiKey("app", hashlib.sha256(secret).hexdigest(), requests_per_s)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def admitted(keys, known, seconds, each_s, clock):
    """Return how many requests, one every `each_s`, are admitted."""
    count = 0
    for _ in range(round(seconds / each_s)):
        with contextlib.suppress(RequestError):
            keys.admit(known, b"secret")
            count += 1
        clock.now_s += each_s
    return count


@pytest.mark.parametrize(("num_replicas", "expected"), [(1, 100), (4, 25)])
def test_a_keys_rate_is_divided_by_the_replicas_with_a_burst_of_1_s(num_replicas, expected):
    clock = Clock()
    keys, known = Authenticator(clock=clock), (key_of(b"secret"),)
    keys.num_replicas = num_replicas
    burst = admitted(keys, known, 1e-3, 1e-5, clock)
    assert burst == pytest.approx(10 / num_replicas, abs=1)
    clock.now_s += 1.0
    assert admitted(keys, known, 10.0, 0.01, clock) == pytest.approx(expected + 10 / num_replicas, abs=2)


def test_a_key_in_debt_is_refused_until_its_rate_has_paid():
    clock, key = Clock(), key_of(b"secret", 1.0)
    keys = Authenticator(clock=clock)
    for num_items, due_in_s in ((None, 0.0), (0, 1.0), (100, 1.0), (1_000, 10.0)):
        clock.now_s += 1_000.0
        keys.admit((key,), b"secret")
        clock.now_s += 0.999
        keys.charge(key, num_items)
        if due_in_s > 1.0:
            with pytest.raises(RequestError) as error:
                keys.admit((key,), b"secret")
            assert error.value.retry_after_s == due_in_s - 1.0
        else:
            keys.admit((key,), b"secret")


def test_a_change_of_keys_forgives_no_debt():
    clock = Clock()
    keys = Authenticator(clock=clock)
    known = (key_of(b"secret", 0.1),)
    keys.admit(known, b"secret")
    for known_now in (known, (*known, key_of(b"other"))):
        with pytest.raises(RequestError, match=r"may send 0\.1 requests per second") as error:
            keys.admit(known_now, b"secret")
        assert (error.value.status, error.value.retry_after_s) == (429, 9)
    assert keys.admit(known_now, b"other").sha256 == known_now[1].sha256


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_keys_whoever_is_on_the_machine_may_ask(host):
    assert Authenticator(host=host).admit((), None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "ranker.example", ""])
def test_without_keys_other_machines_are_refused_with_the_remedy(host):
    with pytest.raises(RequestError, match=r"user_config\.api_keys .*http_options\.host") as error:
        Authenticator(host=host).admit((), b"anything")
    assert error.value.status == 401
    assert host == "" or host not in str(error.value)


@pytest.mark.parametrize("given", [None, b"", b"secret ", b"\xff" * 9_000])
def test_what_is_no_key_is_refused(given):
    with pytest.raises(RequestError, match="X-Api-Key must hold a valid API key") as error:
        Authenticator().admit((key_of(b"secret"),), given)
    assert error.value.status == 401


def test_a_minted_key_is_admitted_by_its_hash_and_cannot_be_guessed():
    key, sha256 = mint()
    assert len(key) >= 40
    assert Authenticator().admit((ApiKey("app", sha256, 1.0),), key.encode()).name == "app"
    assert mint() != (key, sha256)


def test_the_command_prints_a_key_once_and_the_line_that_the_file_takes():
    done = CliRunner().invoke(app, ["key", "app", "--rps", "5"])
    first, *_, line = done.stdout.splitlines()
    secret = first.removeprefix("X-Api-Key: ")
    (known,) = UserConfig.from_mapping({"api_keys": yaml.safe_load(line)}).api_keys
    assert (known.name, known.requests_per_s, known.may_choose_arm) == ("app", 5.0, False)
    assert Authenticator().admit((known,), secret.encode()) is known
    *_, line = CliRunner().invoke(app, ["key", "on: {", "--rps", "1000000"]).stdout.splitlines()
    (known,) = UserConfig.from_mapping({"api_keys": yaml.safe_load(f"{{{line}}}")}).api_keys
    assert (known.name, known.requests_per_s) == ("on: {", 1e6)
    result = json.loads(CliRunner().invoke(app, ["key", "--json"]).stdout)
    (known,) = UserConfig.from_mapping({"api_keys": result["api_keys"]}).api_keys
    assert Authenticator().admit((known,), result["key"].encode()) is known


@pytest.mark.parametrize("arguments", [[""], ["app", "--rps", "1e9"]])
def test_the_command_prints_no_line_that_the_file_would_not_take(arguments):
    done = CliRunner().invoke(app, ["key", *arguments])
    assert done.exit_code == 2
    assert not done.stdout
