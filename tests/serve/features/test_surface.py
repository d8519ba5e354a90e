from __future__ import annotations

import pytest
from tiny import TOML

from serve.contract.errors import TabrankError
from serve.features.definitions import KINDS
from serve.features.rows import Schema
from serve.features.surface import load_surface, read_surface


@pytest.mark.parametrize("name", ["spaces", "ranklens"])
def test_a_shipped_surface_is_read_by_its_name(name):
    assert load_surface(name).name == name


def test_a_surface_is_read_from_a_path(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML)
    assert load_surface(str(tmp_path / "mine.toml")).label.within_ms == 10_000


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("half_life", "halflife", "features.joins: unknown key 'halflife'; did you mean 'half_life'?"),
        ('popular = "audience"', 'popular = "audiense"', "did you mean 'audience'?"),
        ('popular = "audience"', 'popular = "topic"', "'topic' is a category; name a numeric feature"),
        ("candidate.topic", "candidate.topc", "did you mean 'candidate.topic'?"),
        ('"gauge"', '"gage"', "did you mean 'gauge'?"),
        ('up = "join"', 'up = "jion"', "did you mean 'join'?"),
        ('"10s"', '"ten"', "write a number and a unit"),
        ('"10s"', "10", "write a number and a unit"),
        ("rate = 0.1", "rate = 1.5", "must be from 0.0001 to 0.9999"),
        ("keep = 4", "keep = 0", "0 must be from 1 to 1024"),
        ("max = 4", "max = 1000", "1000 must be from 1 to 256"),
        ('price = { type = "number"', 'price = { type = "nummer"', "did you mean 'number'?"),
        ('field = "candidate.started_ms"', 'field = "candidate.price"', "it must be time"),
        ('language = "category"\nfollows', 'id = "category"\nfollows', "reserved for the log"),
        ('name = "tiny"', 'name = "Tiny!"', "lower-case"),
        ('name = "tiny"', 'nme = "tiny"', "unknown key 'nme'; did you mean 'name'?"),
        ('name = "tiny"', "name = [", "not valid TOML"),
        ('entity = "candidate", event', "event", "the key 'entity' is missing"),
        (
            'viewer = "viewer.language", candidate',
            'viewer = "candidate.language", candidate',
            "must be a viewer's",
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(old, new, said):
    assert old in TOML
    with pytest.raises(TabrankError, match=r"tiny.toml") as error:
        read_surface(TOML.replace(old, new, 1), "tiny.toml")
    assert said in str(error.value)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(TabrankError, match="did you mean 'spaces'"):
        load_surface("spcaes")


def test_every_numeric_kind_has_the_transform_that_training_reads():
    numeric = [kind for kind in KINDS.values() if not kind.categorical]
    assert {kind.transform for kind in numeric} <= {"none", "log1p"}


def test_the_state_fingerprint_depends_on_state_and_not_on_features():
    base = Schema(read_surface(TOML)).fingerprint
    assert Schema(read_surface("# a comment\n" + TOML)).fingerprint == base
    assert Schema(read_surface(TOML.replace('transform = "log1p"', 'transform = "none"'))).fingerprint == base
    assert Schema(read_surface(TOML.replace('half_life = "10s"', 'half_life = "20s"'))).fingerprint != base
