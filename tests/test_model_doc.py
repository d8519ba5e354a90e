"""The guide on the model: its files, sizes and limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serve.model import artifact, scorers
from serve.model.encoder import CLIP
from training.data import doubts, encoding
from training.evaluation import paired
from training.examination import estimate
from training.fit import sizing, teaching
from training.fit.loop import FitConfig
from training.fit.sizing import sized
from training.search import space, task, trials, winner

GUIDE = " ".join((Path(__file__).parents[1] / "docs" / "model.md").read_text().split())


def test_the_table_of_an_artifact_names_each_of_its_files():
    part = GUIDE.partition("## What an artifact holds")[2].partition("## How it is served")[0]
    named = re.findall(r"\| `([\w.]+)` \|", part)
    assert sorted(named) == sorted([artifact.MANIFEST, *artifact.FILES])


def sentences():
    """Yield what the page says, made from the values that the code has."""
    network, first = sized(100_000).network, FitConfig()
    yield f"clipped to ±{CLIP:g}"
    yield f"at least {encoding.MIN_ROWS} training rows, the {encoding.MAX_VOCABULARY:,} most frequent"
    yield f"each of the {encoding.MAX_HOT} most frequent values"
    yield f"1 + √(size of the vocabulary) numbers, {encoding.MAX_EMBEDDING} at most"
    yield f"width of the network, {network.width} by default"
    yield f"with γ = {network.gamma}"
    yield f"entropy of the masks times {network.lambda_sparse}"
    yield f"each group of {network.virtual_batch_size} rows"
    sizes = ", ".join(f"{size:,}" for size in sizing.BATCHES[:-1])
    yield f"largest of {sizes} and {sizing.BATCHES[-1]:,} that leaves {sizing.EPOCH_STEPS} steps"
    yield f"about {sizing.STEPS:,} steps in all, between {sizing.EPOCHS[0]} and {sizing.EPOCHS[1]} epochs"
    yield f"rises to {first.learning_rate} over the first {first.warmup:.0%}".replace("%", " %")
    yield f"last epoch by more than {100 * sizing.STILL_FALLING:g} %"
    yield f"fewer than {sizing.FEW_ROWS} training rows for each parameter"
    yield f"fewer than {estimate.MIN_EVENTS} label events or {estimate.MIN_VIEWERS} viewers"
    yield (
        f"at most {estimate.MAX_ERROR['explored']} for drawn orders, "
        f"and at most {estimate.MAX_ERROR['arms']} for arms"
    )
    yield f"fewer than {estimate.MIN_OWN_EVENTS:,} events takes that of the first one"
    yield f"becomes {teaching.TEACHER_SHARE} times the teachers' mean"
    yield f"a tenth of the rows and {winner.MAX_HELD_ROWS:,} at most"
    yield f"({space.WIDTHS[0]} to {space.WIDTHS[-1]})"
    yield f"{trials.ROWS_PER_S} rows for each second of the budget, {trials.MIN_TRIAL_ROWS:,} at least"
    yield f"{task.SHARES['training']:.0%} train, {task.SHARES['test']:.0%} compare".replace("%", " %")
    yield f"at most {paired.MARGIN:.0%}".replace("%", " %")
    yield f"otherwise by more than {scorers.TOLERANCE:.5f}"
    yield f"more than {scorers.MAX_RESIDUAL:.6f} for a row"
    yield f"the import warns below {doubts.ENOUGH_POSITIVES:,}"


@pytest.mark.parametrize("sentence", list(sentences()))
def test_a_number_on_the_page_is_that_of_the_code(sentence):
    assert sentence in GUIDE
