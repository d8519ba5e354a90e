"""Columns that may know the future are asked about, and others are not."""

from __future__ import annotations

from functools import cache

import pytest

from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from tests.support.leaky_log import HONEST, LEAKS, OF_ITEMS, Column, write_leaky
from training.data.dataset import Dataset, build
from training.evaluation.foresight import doubted, questions

TOML = """
name = "leaky"
events = ["click"]
outcomes.click = {{ event = "click", within = "5m" }}
popular = "clicks"

[viewer]
age = "number"

[candidate]
topic = "category"
{name} = {{ type = "number", request_time = {stated}{word} }}

[features]
age = {{ kind = "number", field = "viewer.age" }}
topic = {{ kind = "category", field = "candidate.topic" }}
column = {{ kind = "number", field = "candidate.{name}" }}

[features.clicks]
kind = "rate"
entity = "candidate"
event = "click"
over = "impression"
prior = {{ rate = 0.1, weight = 10 }}
"""
LOGS = "news", "shop"


def surface(column: Column, word: str = "") -> Surface:
    name, stated = column.__name__, str(column not in OF_ITEMS).lower()
    text = TOML.format(name=name, stated=stated, word=word)
    if name == "status":
        text = text.replace('status = { type = "number"', 'status = { type = "category"')
        text = text.replace('column = { kind = "number"', 'column = { kind = "category"')
    return read_surface(text)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    @cache
    def of(column: Column, log: str) -> Dataset:
        folder = tmp_path_factory.mktemp("leaky") / "log"
        write_leaky(folder, log, column)
        return build(Schema(surface(column)), read_log(folder, surface(column)))

    return of


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("column", LEAKS, ids=lambda column: column.__name__)
def test_a_leak_is_asked_about_until_a_person_has_said_that_it_is_known(rows, column, log):
    data = rows(column, log)
    (told,) = doubted(data, surface(column))
    assert f"candidate.{column.__name__} " in told or "feature 'column'" in told
    assert doubted(data, surface(column, ", known_before = true")) == []


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("column", HONEST, ids=lambda column: column.__name__)
def test_a_strong_column_is_asked_about_at_most_once(rows, column, log):
    data = rows(column, log)
    assert {one.column for one in questions(data, surface(column))} <= {f"candidate.{column.__name__}"}
    assert doubted(data, surface(column, ", known_before = true")) == []
