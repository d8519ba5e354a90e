"""Tests of the language of the templates, on small ones."""

import pytest
import yaml

from serve.operate.render.templates import FOLDER, Loader, dump, fill, load


def filled(template, **values):
    return fill(yaml.load(template, Loader), values)


def test_a_value_keeps_its_type_and_joins_a_text():
    assert filled("{a: $port, b: '$name-$port'}", port=80, name="x") == {"a": 80, "b": "x-80"}


def test_a_dollar_is_written_twice_and_is_not_looked_for_in_values():
    assert filled("[$$HOME/x, $value]", value="$HOME") == ["$HOME/x", "$HOME"]


def test_a_key_and_an_item_without_a_value_are_left_out_and_false_is_a_value():
    assert filled("{a: $a, b: [$a, 1], c: $c}", a=None, c=False) == {"b": [1], "c": False}


@pytest.mark.parametrize("given", [True, 3, "text"])
def test_a_part_is_kept_if_its_value_is_true(given):
    template = "{a: !on {b: 1}, c: [!on text, 2], d: !on [3]}"
    assert filled(template, on=given) == {"a": {"b": 1}, "c": ["text", 2], "d": [3]}


@pytest.mark.parametrize("given", [False, None, 0, "", []])
def test_a_part_is_left_out_if_its_value_is_not_true(given):
    assert filled("{a: !on {b: 1}, c: [!on text, 2], d: !on [3]}", on=given) == {"c": [2]}


def test_a_part_is_repeated_for_each_table_and_becomes_one():
    pools = [{"pool": "head", "cpus": 1}, {"pool": "gpus", "cpus": 8}]
    assert filled("{a: !pools [{pool: $pool, cpus: $cpus}]}", pools=pools) == {"a": pools}
    assert filled("[0, !pools [$pool, $both]]", pools=pools, both="x") == [0, "head", "x", "gpus", "x"]


def test_a_name_without_a_value_is_an_error_and_not_an_empty_text():
    for template in ("$nome", "a $nome", "!nome text"):
        with pytest.raises(KeyError, match="nome"):
            filled(template, name="x")


def test_a_text_of_several_lines_is_written_as_a_block_below_the_notes():
    assert dump(["one", "two"], {"a": "x\ny\n"}, {"b": 1}) == "# one\n# two\na: |\n  x\n  y\n---\nb: 1\n"


@pytest.mark.parametrize("name", [path.name for path in FOLDER.glob("*.yaml")])
def test_every_template_is_read(name):
    assert all(load(name))
