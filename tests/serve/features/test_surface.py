from __future__ import annotations

import functools
import json
import tomllib

import jsonschema
import pytest

from serve.contract.errors import TabrankError
from serve.contract.typed_reader import Invalid, read
from serve.features.registry import KINDS
from serve.features.rows import Schema
from serve.features.slots import OWNERS
from serve.features.surface import SHIPPED, TEXT_KEY, Surface, load_surface, read_surface
from tests.support.small_surface import TOML
from tests.support.write_schemas import FOLDER

SCHEMA = jsonschema.Draft7Validator(json.loads((FOLDER / "surface.json").read_text()))


COUNTED = 'entity = "candidate", event'


@pytest.mark.parametrize("name", ["spaces", "ranklens"])
def test_a_shipped_surface_is_read_by_its_name(name):
    assert load_surface(name).name == name


def test_a_surface_is_read_from_a_path(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML)
    assert load_surface(str(tmp_path / "mine.toml")).primary.within_ms == 10_000


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "half_life",
            "halflife",
            "features.joins.halflife: unknown key 'halflife'; did you mean 'half_life'?",
        ),
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
        ('language = "category"\nfollows', '_state = "time"\nfollows', "reserved for the log"),
        ('language = "category"\nfollows', 'received_ms = "time"\nfollows', "reserved for the log"),
        ('name = "tiny"', 'name = "Tiny!"', "lower-case"),
        ('kind = "age"', 'kind = "age", descibe = "x"', "did you mean 'describe'?"),
        ('kind = "age"', 'kind = "age", describe = " "', "features.age_s.describe: ' ' must be words on one"),
        ('kind = "age"', 'kind = "age", unit = "a\\nb"', r"features.age_s.unit: 'a\nb' must be words on one"),
        ('kind = "age"', f'kind = "age", describe = "{"x" * 81}"', "1 to 80 characters"),
        ('kind = "age"', 'kind = "age", unit = 3', "features.age_s.unit: 3 must be a string"),
        ('name = "tiny"', 'nme = "tiny"', "unknown key 'nme'; did you mean 'name'?"),
        ('name = "tiny"', "name = [", "not valid TOML"),
        ('entity = "candidate", event', "event", "the key 'entity' is missing"),
        (COUNTED, 'entity = ["candidate", "viewer"], event', 'must be ["viewer", "candidate"]'),
        (COUNTED, 'entity = "candidate.topc", event', "did you mean 'candidate.topic'?"),
        (COUNTED, 'entity = "candidate.price", event', "is a number; it must be a category"),
        (COUNTED, f"keep = 8, {COUNTED}", "features.joins.keep: only entity ="),
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


def test_position_bias_is_removed_unless_clients_report_impressions_or_the_surface_ignores_it():
    def surface(kind=None, events='["click", "join", "leave"]'):
        text = TOML.replace('["click", "join", "leave"]', events)
        return read_surface(f'position_bias = "{kind}"\n{text}' if kind else text)

    reporting = '["click", "join", "leave", "impression"]'
    assert surface().is_debiased
    assert not surface("ignored").is_debiased
    assert not surface(events=reporting).is_debiased
    assert surface("examined", reporting).is_debiased
    # A surface that says the same in another way is the same.
    assert surface("examined").fingerprint == surface().fingerprint != surface("ignored").fingerprint


def test_the_place_of_unknown_candidates_changes_no_fingerprint():
    scored = read_surface(f'unknown_candidates = "scored"\n{TOML}')
    assert (scored.unknown_candidates, read_surface(TOML).unknown_candidates) == ("scored", "last")
    assert scored.fingerprint == read_surface(TOML).fingerprint
    with pytest.raises(TabrankError, match="unknown_candidates"):
        read_surface(f'unknown_candidates = "first"\n{TOML}')


def test_the_state_fingerprint_depends_on_state_and_not_on_features():
    base = Schema(read_surface(TOML)).fingerprint
    assert Schema(read_surface("# a comment\n" + TOML)).fingerprint == base
    assert Schema(read_surface(TOML.replace('transform = "log1p"', 'transform = "none"'))).fingerprint == base
    assert Schema(read_surface(TOML.replace('half_life = "10s"', 'half_life = "20s"'))).fingerprint != base


def test_words_for_people_change_neither_features_nor_fingerprints():
    base = read_surface(TOML)
    worded = read_surface(
        TOML.replace('kind = "rate"', 'describe = "how often joined", unit = "%", kind = "rate"')
    )
    assert (worded.features["join_rate"].label, worded.features["join_rate"].unit) == (
        "how often joined",
        "%",
    )
    assert worded.features == base.features
    assert worded.fingerprint == base.fingerprint
    assert Schema(worded).fingerprint == Schema(base).fingerprint


def test_a_feature_without_words_gets_them_from_its_kind_and_fields():
    features = read_surface(TOML).features
    assert {
        name: features[name].label for name in ("price", "viewer_language", "age_s", "same_language")
    } == {
        "price": "price",
        "viewer_language": "viewer's language",
        "age_s": "time since started",
        "same_language": "language equals viewer's language",
    }
    assert features["follows_host"].label == "host is among viewer's follows"
    assert features["joins"].label == "join events of the candidate"
    assert features["topic_affinity"].label == "viewer's join per impression at the same topic"
    assert (features["age_s"].unit, features["same_language"].unit, features["price"].unit) == (
        "s",
        "yes/no",
        "",
    )


@pytest.mark.parametrize("name", ["spaces", "ranklens"])
def test_every_feature_of_a_shipped_surface_has_words(name):
    assert all(kind.describe for kind in load_surface(name).features.values())


@pytest.mark.parametrize("name", ["spaces", "ranklens"])
def test_a_shipped_surface_is_accepted_by_the_schema_that_it_names(name):
    path = SHIPPED / f"{name}.toml"
    first, *_ = path.read_text().splitlines()
    assert path.parent.joinpath(first.removeprefix("#:schema ")).resolve() == FOLDER / "surface.json"
    assert not list(SCHEMA.iter_errors(tomllib.loads(path.read_text())))


def key_paths(value, above=()):
    """Yield the path of every key of a surface that is not a name of the user's."""
    for key, child in value.items() if isinstance(value, dict) else ():
        if above not in [(owner,) for owner in (*OWNERS, "features")]:
            yield (*above, key)
        yield from key_paths(child, (*above, key))


def test_no_key_of_a_surface_is_accepted_under_another_name():
    paths = list(key_paths(tomllib.loads(TOML)))
    assert len(paths) > 50
    for *above, key in paths:
        if above == ["outcomes"]:
            # An outcome is free to have any name.
            continue
        document = tomllib.loads(TOML)
        table = functools.reduce(dict.__getitem__, above, document)
        table[f"{key}_s"] = table.pop(key)
        assert not SCHEMA.is_valid(document), (*above, key)
        refused = "'kind' is missing" if key == "kind" else f"unknown key '{key}_s'; did you mean '{key}'"
        with pytest.raises(Invalid, match=refused):
            read(Surface, document | {TEXT_KEY: ""}, "tiny.toml")


def test_all_mistakes_of_a_surface_are_named_at_once():
    wrong = TOML.replace('"gauge"', '"gage"').replace("keep = 4", "keep = 0").replace('"10s"', '"ten"')
    with pytest.raises(TabrankError) as error:
        read_surface(wrong, "tiny.toml")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == [
        "outcomes.join.within",
        "features.audience.kind",
        "features.joins.half_life",
        "features.topic_affinity.keep",
        "features.tag_affinity.keep",
    ]


def test_an_affinity_of_a_viewers_field_is_refused():
    feature = 'x = { kind = "affinity", event = "join", over = "impression", field = "viewer.language", '
    with pytest.raises(TabrankError, match="must be a candidate's field"):
        read_surface(TOML + feature + "prior = { rate = 0.1, weight = 1 }, keep = 2 }")
