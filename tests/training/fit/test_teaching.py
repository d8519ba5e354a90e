"""Test that LightGBM teaches the network of a fit, where it has the time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from serve.features.surface import read_surface
from tests.support.shop_log import write_shop
from training.drafting.draft import draft
from training.fit import teaching
from training.fit.prepare import prepare
from training.fit.teaching import TEACHER_SHARE, taught


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return the prepared rows of a log."""
    folder = tmp_path_factory.mktemp("teaching")
    write_shop(folder / "log", slates=600)
    return prepare(read_surface(draft(folder / "log").text), folder / "log")


def test_the_labels_of_a_fit_lean_to_what_lightgbm_predicts(prepared):
    rows = taught(prepared.train, prepared.rows, prepared.encoder, prepared.examinations)
    observed, mixed = prepared.train.label.numpy(), rows.label.numpy()
    assert rows.x is prepared.train.x
    predicted = (mixed - (1 - TEACHER_SHARE) * observed) / TEACHER_SHARE
    assert 0 < predicted.min() < predicted.max() < 1
    assert np.corrcoef(predicted[:, 0], observed[:, 0])[0, 1] > 0.2
    # A killed fit resumes, because the same rows are taught the same labels.
    again = taught(prepared.train, prepared.rows, prepared.encoder, prepared.examinations)
    assert np.array_equal(again.label.numpy(), mixed)


def test_a_slow_machine_teaches_the_same_labels(prepared, monkeypatch):
    wall = itertools.count(step=1_000.0)
    monkeypatch.setattr("time.monotonic", lambda: next(wall))
    rows = taught(prepared.train, prepared.rows, prepared.encoder, prepared.examinations)
    assert rows is not prepared.train


def test_a_lightgbm_that_would_take_too_long_teaches_nothing(prepared, monkeypatch, capsys):
    monkeypatch.setattr(teaching, "MOST_S", 0.0)
    assert taught(prepared.train, prepared.rows, prepared.encoder, prepared.examinations) is prepared.train
    assert "LightGBM does not teach" in capsys.readouterr().err
