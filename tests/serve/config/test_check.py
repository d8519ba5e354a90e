"""`python -m serve check`: a corpus of broken files, and every key of the shipped file misspelt."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.core import TyperCommand
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.application import DRAIN_ENV, DRAIN_S
from serve.config.reader import read
from serve.config.yaml_positions import ConfigRefused
from serve.contract.errors import TabrankError
from serve.operate.host.environment import environment
from serve.operate.host.run_folder import RunFolder
from tests.support.write_schemas import FOLDER, schemas
from training.__main__ import app as training

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "cluster.yaml"
TEXT = SHIPPED.read_text()
BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))
SCHEMA = jsonschema.Draft7Validator(json.loads((FOLDER / "cluster.json").read_text()))
# The first lines of a broken file.
EXPECTED = re.compile(r"# (refused|warned) at (\d+):(\d+): (.+)")
# Warnings that every file has here.
INTENDED = (
    "There is no store",
    "These arms have no model",
    "still has names of another",
    "every node mounts",
)
# Errors of one key or value, which a JSON Schema can find too.
KEY_ERRORS = re.compile(r"unknown (key|value)|the key '\w+' is missing|must be (a whole number|from)")
# The keys directly under these are names that the user chooses.
CHOSEN = ("arms", "nodes", "api_keys", "guardrails")


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    """Remove the shell's settings, and restore the signal handlers."""
    monkeypatch.delenv(DRAIN_ENV, raising=False)
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


def checked(path: Path) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)


def place(problem: dict) -> tuple[int, int]:
    return problem["line"], problem["column"]


def text(problem: dict) -> str:
    return f"{problem['path']}: {problem['detail']}"


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_refused_at_the_right_place_with_the_right_hint(path):
    lines = path.read_text().splitlines()
    expected = [match.groups() for line in lines if (match := EXPECTED.fullmatch(line))]
    code, result = checked(path)
    found = {
        "refused": result["problems"],
        "warned": [one for one in result["warnings"] if not any(note in one["detail"] for note in INTENDED)],
    }
    for kind, line, column, hint in expected:
        at = [
            one for one in result["problems"] + result["warnings"] if place(one) == (int(line), int(column))
        ]
        assert any(hint in text(one) for one in at), (kind, line, column, hint, result)
    assert len(found["refused"]) == sum(kind == "refused" for kind, *_ in expected), result["problems"]
    assert {place(one) for one in found["warned"]} <= {
        (int(line), int(column)) for _, line, column, _ in expected
    }
    assert (code, result["accepted"]) == ((1, False) if found["refused"] else (0, True))


def test_no_secret_of_a_broken_file_is_repeated():
    secret = "hunter2"
    result = {path.stem: checked(path)[1] for path in BROKEN if secret in path.read_text()}
    assert len(result) >= 3
    assert not [name for name, one in result.items() if secret in repr(one)]


def test_forty_files_of_the_corpus_and_more_are_refused():
    assert sum("# refused" in path.read_text() for path in BROKEN) >= 40


def keys(node: yaml.Node, above: str = "") -> list[yaml.ScalarNode]:
    """Yield every key of a document that is not a name of the user's."""
    if isinstance(node, yaml.SequenceNode):
        return [found for child in node.value for found in keys(child, above)]
    if not isinstance(node, yaml.MappingNode):
        return []
    own = [] if above in CHOSEN else [key for key, _ in node.value]
    return own + [found for key, child in node.value for found in keys(child, key.value)]


KEYS = keys(yaml.compose(TEXT))
TYPOS = {
    "dropped": lambda name, i: name[:i] + name[i + 1 :],
    "doubled": lambda name, i: name[: i + 1] + name[i:],
    "swapped": lambda name, i: name[:i] + name[i : i + 2][::-1] + name[i + 2 :],
    "suffixed": lambda name, i: name + "_s",
    "capitalised": lambda name, i: name[:i] + name[i].upper() + name[i + 1 :],
}


def renamed(key: yaml.ScalarNode, name: str) -> str:
    return TEXT[: key.start_mark.index] + (name or "''") + TEXT[key.end_mark.index :]


def refused_at(key: yaml.ScalarNode, name: str, folder: Path) -> bool:
    """Return True if the shipped file with one key renamed is refused at that key."""
    path = folder / "cluster.yaml"
    path.write_text(renamed(key, name))
    with pytest.raises(ConfigRefused) as caught:
        read(path)
    where = (key.start_mark.line + 1, key.start_mark.column + 1)
    return where in {(one.line, one.column) for one in caught.value.problems}


def test_no_key_of_the_shipped_file_is_accepted_under_another_name(tmp_path):
    slips = list(TYPOS.values())
    assert len(KEYS) > 80
    for i, key in enumerate(KEYS):
        name = slips[i % len(slips)](key.value, len(key.value) // 2)
        if name != key.value:
            assert refused_at(key, name, tmp_path), (key.value, name, key.start_mark)
            assert not SCHEMA.is_valid(yaml.safe_load(renamed(key, name))), (key.value, name)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(key=st.sampled_from(KEYS), typo=st.sampled_from(sorted(TYPOS)), at=st.integers(0, 40))
def test_renaming_any_key_of_the_shipped_file_is_never_accepted(tmp_path_factory, key, typo, at):
    name = TYPOS[typo](key.value, at % len(key.value))
    assert name == key.value or refused_at(key, name, tmp_path_factory.getbasetemp())


def test_the_shipped_file_is_accepted_with_warnings_only_for_store_and_models():
    code, result = checked(SHIPPED)
    assert (code, result["accepted"], result["problems"]) == (0, True, [])
    assert all(warning["detail"].startswith(INTENDED[:2]) for warning in result["warnings"])


def test_the_members_of_an_enumeration_are_shown_by_their_values(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(TEXT.replace("logging_config:\n", "logging_config:\n  encoding: XML\n"))
    with pytest.raises(ConfigRefused, match=r"Encoding must be one of TEXT or JSON\."):
        read(path)


def test_the_file_of_the_rerun_experiment_is_accepted():
    assert checked(ROOT / "benchmarks/rerun/cluster.yaml")[0] == 0


def test_the_shipped_file_becomes_a_cluster_as_its_last_comment_says(tmp_path):
    changes = re.findall(r"#   (nodes|args):\s+(.+)", TEXT[TEXT.index("\nnodes:") :])
    document = yaml.safe_load(TEXT)
    arguments = document["applications"][0]["args"]
    for block, change in changes:
        (document["nodes"] if block == "nodes" else arguments).update(yaml.safe_load(f"{{{change}}}"))
    log, arguments["log"] = arguments["log"], "var/log"
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigRefused, match=r"args\.log: 'var/log' is local to each machine") as caught:
        read(path)
    assert len(caught.value.problems) == 1
    arguments["log"] = log
    path.write_text(yaml.safe_dump(document))
    assert sum(pool.max_nodes for pool in read(path).nodes.values()) == 5
    assert any("no replica ever needs a node of this pool" in one.detail for one in read(path).warnings)
    for deployment in document["applications"][0]["deployments"][:2]:
        deployment["autoscaling_config"]["max_replicas"] = 2
        deployment["ray_actor_options"]["num_cpus"] = 1
    path.write_text(yaml.safe_dump(document))
    assert not any("ever needs" in one.detail for one in read(path).warnings)


def test_without_json_each_problem_is_a_line_with_its_place(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(TEXT.replace("min_replicas", "min_replica").replace("host: 127.0.0.1", "host: 0.0.0.0"))
    done = CliRunner().invoke(app, ["check", str(path)])
    lines = done.stdout.splitlines()
    assert (done.exit_code, len(lines)) == (1, TEXT.count("min_replicas") + 1)
    assert re.fullmatch(rf"{path}:\d+:\d+: http_options\.host: 0\.0\.0\.0 admits everyone.*", lines[0])
    assert all(
        re.fullmatch(rf"{path}:\d+:\d+: applications\[0\]\.deployments\S+: unknown key.*", line)
        for line in lines[1:]
    )


def test_a_file_that_cannot_be_read_is_no_refusal():
    done = CliRunner().invoke(app, ["check", "nowhere.yaml", "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "nowhere.yaml: No such file or directory; name a Ray Serve config" in done.stderr


def test_every_command_that_is_advised_in_an_empty_folder_can_be_run_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text(TEXT)
    told = CliRunner().invoke(app, ["check", str(tmp_path / "cluster.yaml")]).output
    told += CliRunner().invoke(app, ["check", str(tmp_path / "none.yaml")]).output
    advised = re.findall(r"`(?:cd \S+ && )?python -m (\w+) ([^`]+)`", told)
    assert len(advised) == 6, told
    # The arguments are parsed, and nothing is run.
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: None)
    for module, arguments in advised:
        done = CliRunner().invoke({"serve": app, "training": training}[module], shlex.split(arguments))
        assert done.exit_code == 0, (arguments, done.output)


def test_the_drain_that_is_checked_is_the_one_that_up_sets(tmp_path):
    assert float(environment(read(SHIPPED), RunFolder(tmp_path), tmp_path)[DRAIN_ENV]) == DRAIN_S


def test_the_code_that_a_file_names_is_not_run(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')")
    path = tmp_path / "cluster.yaml"
    policy = "policy: {policy_function: 'mine:policy'}"
    path.write_text(
        "http_options: {host: 127.0.0.1}\napplications:\n- {name: a, import_path: 'mine:build', deployments: "
        f"[{{name: A, autoscaling_config: {{{policy}}}, request_router_config: {{request_router_class: mine.R}}}}]}}\n"
    )
    assert read(path).warnings == ()


def test_a_password_in_the_store_is_not_shown(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(TEXT.replace("lmdb:var/store", "redsi://ann:secret@host/0"))
    with pytest.raises(TabrankError, match="did you mean 'redis'") as caught:
        read(path)
    assert "secret" not in str(caught.value)


def test_whatever_a_value_is_it_ends_in_a_sentence_or_is_accepted(tmp_path):
    path = tmp_path / "cluster.yaml"
    for odd in (None, [], {}, True, [["x"]]):
        for key in (
            "applications",
            "deployments",
            "name",
            "autoscaling_config",
            "args",
            "experiment",
            "arms",
            "head",
        ):
            path.write_text(json.dumps(replaced(yaml.safe_load(TEXT), key, odd)))
            with contextlib.suppress(TabrankError):
                read(path)


def replaced(value, key, new):
    """Return a copy in which each value of that key is replaced."""
    if isinstance(value, list):
        return [replaced(child, key, new) for child in value]
    if not isinstance(value, dict):
        return value
    return {name: new if name == key else replaced(child, key, new) for name, child in value.items()}


def test_a_file_that_ray_could_not_open_is_refused(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(ConfigRefused, match="it is UTF-16; save it as UTF-8 text"):
        read(path)


def test_code_of_others_whose_name_is_like_ours_is_theirs(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(TEXT.replace("serve.config.scaling:Steady", "shop.scaling:Steady"))
    assert read(path).nodes


def test_the_schemas_are_those_of_the_models():
    assert {path.name for path in FOLDER.glob("*.json")} == set(schemas())
    for name, content in schemas().items():
        remedy = "run python tests/support/write_schemas.py"
        assert (FOLDER / name).read_text() == content, f"{name} differs from the models; {remedy}"


@pytest.mark.parametrize("path", ["cluster.yaml", "benchmarks/rerun/cluster.yaml"])
def test_a_shipped_cluster_file_is_accepted_and_names_the_schema(path):
    content = (ROOT / path).read_text()
    assert not list(SCHEMA.iter_errors(yaml.safe_load(content)))
    _, _, named = content.splitlines()[0].partition("# yaml-language-server: $schema=")
    assert (ROOT / path).parent.joinpath(named).resolve() == FOLDER / "cluster.json"


SPREAD = {"field": "candidate.host", "most": 1, "within": 4}


@pytest.mark.parametrize(
    ("rule", "is_right"),
    [
        ({"spread": SPREAD}, True),
        ({"spread": SPREAD | {"most": 0}}, False),
        ({"spread": SPREAD | {"field": None}}, False),
        ({"boost": {"where": {"shown_before": {"min": 3}}, "by": -0.05}}, True),
        ({"boost": {"where": {"shown_before": {}}, "by": -0.05}}, False),
        ({"boost": {"where": {"shown_before": {"mn": 3}}, "by": -0.05}}, False),
        (
            {"limit": {"where": {"candidate.topic": ["a", "b"], "context.hour": 3}, "most": 0, "first": 5}},
            True,
        ),
        ({"limit": {"where": {"candidate.topic": []}, "most": 0, "first": 5}}, False),
        ({"limit": {"where": {"candidate.topic": True}, "most": 0, "first": 5}}, False),
        ({"spread": SPREAD, "limit": {"where": {"context.hour": 3}, "most": 0, "first": 5}}, False),
        ({}, False),
        ({"pin": "s1"}, False),
    ],
)
def test_the_schema_knows_the_rules_of_a_slate(rule, is_right):
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    ingress = document["applications"][0]["deployments"][0]
    ingress["user_config"]["experiment"]["arms"]["model"]["slate"] = [rule]
    assert SCHEMA.is_valid(document) == is_right


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_key_is_refused_by_the_schema_too(path):
    content = path.read_text()
    if any(KEY_ERRORS.search(line) for line in content.splitlines() if EXPECTED.fullmatch(line)):
        assert not SCHEMA.is_valid(yaml.safe_load(content))
