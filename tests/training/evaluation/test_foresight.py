"""Columns that may know the future are asked about, and others are not."""

from __future__ import annotations

from functools import cache
from itertools import cycle

import pytest

from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from tests.support.leaky_log import HONEST, LEAKS, OF_ITEMS, OF_VIEWERS, Column, status, write_leaky
from training.data.dataset import Dataset, build
from training.evaluation.foresight import doubted, questions

TOML = """
name = "leaky"
events = ["click"]
outcomes.click = {{ event = "click", within = "5m" }}
popular = "clicks"

[viewer]
age = "number"
{viewer}

[candidate]
topic = "category"
{candidate}

[features]
age = {{ kind = "number", field = "viewer.age" }}
topic = {{ kind = "category", field = "candidate.topic" }}
column = {{ kind = "{kind}", field = "{path}" }}

[features.clicks]
kind = "rate"
entity = "candidate"
event = "click"
over = "impression"
prior = {{ rate = 0.1, weight = 10 }}
"""
# Each column is in one of the logs.
LOGS = "news", "shop"


def named(value: Column | str) -> str:
    return value if isinstance(value, str) else value.__name__


def surface(column: Column, word: str = "") -> Surface:
    kind = "category" if column is status else "number"
    owner = "viewer" if column in OF_VIEWERS else "candidate"
    asked = "" if column in (*OF_ITEMS, *OF_VIEWERS) else ", request_time = true"
    declared = f'{column.__name__} = {{ type = "{kind}"{asked}{word} }}'
    of = {"viewer": "", "candidate": "", owner: declared}
    return read_surface(TOML.format(**of, kind=kind, path=f"{owner}.{column.__name__}"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    @cache
    def of(column: Column, log: str) -> Dataset:
        folder = tmp_path_factory.mktemp("leaky") / "log"
        write_leaky(folder, log, column)
        return build(Schema(surface(column)), read_log(folder, surface(column)))

    return of


@pytest.mark.parametrize(("column", "log"), [*zip(LEAKS, cycle(LOGS))], ids=named)
def test_a_leak_is_asked_about_until_a_person_has_said_that_it_is_known(rows, column, log):
    data = rows(column, log)
    (told,) = doubted(data, surface(column))
    assert f".{column.__name__} " in told or "feature 'column'" in told
    assert doubted(data, surface(column, ", known_before = true")) == []


@pytest.mark.parametrize(("column", "log"), [*zip(HONEST, cycle(LOGS))], ids=named)
def test_a_strong_column_is_asked_about_at_most_once(rows, column, log):
    data = rows(column, log)
    assert {one.column for one in questions(data, surface(column))} <= {f"candidate.{column.__name__}"}
    assert doubted(data, surface(column, ", known_before = true")) == []
