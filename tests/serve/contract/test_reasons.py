from __future__ import annotations

from serve.contract.rankings import Reason
from serve.contract.reasons import in_words, sentence

HOST = Reason("host_affinity", "joined this host's rooms", 2.1, 0.0, "joins", 0.83)
AUDIENCE = Reason("audience", "people in the room", 1_234.6, 18.25, "people", -0.2)
FOLLOWS = Reason("follows_host", "the viewer follows the host", 1.0, 0.0, "yes/no", 0.4)


def test_a_sentence_names_what_speaks_for_a_position_and_what_against_it():
    assert sentence(1, [HOST, FOLLOWS, AUDIENCE]) == (
        "First. In favour: joined this host's rooms (2.1 joins, typical 0); "
        "the viewer follows the host (yes, typical no). "
        "Against: people in the room (1,235 people, typical 18.2)."
    )
    assert sentence(4, [AUDIENCE]).startswith("Position 4. Against: people")
    small = Reason("age", "age", 3.0, 4.0, "s", 0.05)
    assert sentence(1, [HOST, small]) == "First. In favour: joined this host's rooms (2.1 joins, typical 0)."
    assert sentence(2, []) == "Second. Nothing sets it apart."


def test_words_sets_and_missing_values_are_read_as_people_would():
    assert in_words(Reason("topic", "topic", "jazz", None, None, 1.0)) == "topic (jazz, typical unknown)"
    assert in_words(Reason("tags", "tags", [], ["x", "y"], None, 1.0)) == "tags (none, typical x, y)"
    assert in_words(Reason("age", "age", None, 3.0, "rooms", 1.0)) == "age (unknown, typical 3 rooms)"


def test_times_are_in_the_unit_in_which_people_count_them():
    age = Reason("age", "time since release", None, 222_542_580.0, "s", 1.0)
    assert in_words(age) == "time since release (unknown, typical 7 y 18 d)"
    assert in_words(Reason("age", "age", 5_780.0, 3.25, "s", 1.0)) == "age (1 h 36 min, typical 3.25 s)"
