"""Test what a search reads of its log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serve.contract.errors import TabrankError
from serve.features.surface import read_surface
from tests.support.shop_log import write_shop
from training.drafting.draft import draft
from training.search.task import SearchSettings, Task


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Return a log of five days and its surface."""
    folder = tmp_path_factory.mktemp("task") / "log"
    write_shop(folder, slates=600)
    return read_surface(draft(folder).text), folder


def read(shop, days=None):
    """Return a task, and how often progress was told: about once an exposure."""
    told = []
    return Task.read(*shop, SearchSettings(60.0, days=days), told.append), len(told)


@pytest.fixture(scope="module")
def whole(shop):
    return read(shop)


def test_the_rows_of_the_newest_days_have_the_features_of_the_whole_log(shop, whole):
    (whole, num_told), (newest, num_of_newest) = whole, read(shop, days=1)
    # The features of older rows are not computed.
    assert num_of_newest < num_told / 4
    late = whole.data.take(slice(len(whole.data) - len(newest.data), None))
    assert 0 < late.ts_ms[-1] - late.ts_ms[0] <= 86_400_000
    for name, array in newest.data.arrays().items():
        np.testing.assert_array_equal(array, late.arrays()[name])
    np.testing.assert_array_equal(newest.data.matrix.numeric, late.matrix.numeric)
    np.testing.assert_array_equal(newest.data.matrix.category, late.matrix.category)


def test_rows_that_requests_pinned_do_not_compare_the_models(whole):
    task, _ = whole
    pinned = replace(task, data=replace(task.data, pinned=task.data.position == 1))
    assert len(pinned.parts["validation"]) == len(task.valid)
    assert (pinned.valid.position != 1).all()
    assert len(pinned.valid) == (task.valid.position != 1).sum()


def test_too_few_days_are_refused_with_the_remedy(shop):
    with pytest.raises(TabrankError, match="give more days"):
        read(shop, days=0.001)[0].parts  # noqa: B018 - it splits the rows
