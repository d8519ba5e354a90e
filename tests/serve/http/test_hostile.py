"""Hostile input ends soon, in a valid value or a documented error; a long lane draws thousands."""

from __future__ import annotations

import json
import random
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import yaml

from serve.config.reader import read
from serve.contract.errors import ArtifactRefused, RequestError, TabrankError
from serve.contract.validation import json_value
from serve.features.matrix import Features
from serve.features.rows import CandidateRows, Schema
from serve.features.surface import Surface, read_surface
from serve.http.decoding import decode_request
from serve.log.events import decode_batch
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from serve.model.artifact import save
from serve.model.scorers import load_scorer
from tests.support.hostile_input import damaged, mutated
from tests.support.networks import artifact_files, random_encoder, random_network
from tests.support.small_surface import TOML, tables
from training.network.network import NetworkConfig

# The most CPU time that one input may take.
CPU_S = 1.0
REQUEST = {
    "viewer": "ann",
    "candidates": ["a", {"candidate": "b", "fields": {"price": 1.0}}, "c"],
    "limit": 2,
    "context": {"hour": 3},
    "request_id": "r1",
    "explain": True,
    "traffic": "test",
}
RECORDS = {
    "records": [
        {
            "type": "event",
            "id": "e1",
            "viewer": "ann",
            "candidate": "a",
            "kind": "join",
            "ts_ms": 1,
            "value": 2.0,
        },
        {"type": "viewer", "id": "ann", "fields": {"language": "en", "follows": ["hal"]}},
        {
            "type": "candidate",
            "id": "a",
            "fields": {"price": 1, "started_ms": 5, "tags": ["x"]},
            "ends_ms": 9,
        },
        {"type": "forget", "viewer": "bob"},
    ]
}


def drawn(few: int, many: int) -> pytest.MarkDecorator:
    """Seeds of the fast lane, and others of the longer one."""
    rest = pytest.param(
        range(few, many), marks=[pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof]
    )
    return pytest.mark.parametrize("seeds", [range(few), rest], ids=["few", "many"])


@contextmanager
def soon(what: object) -> Iterator[None]:
    begun_s = time.process_time()
    yield
    assert time.process_time() - begun_s < CPU_S, what


def body(draw: random.Random, valid: Any) -> bytes:
    """Draw a JSON body with odd values in odd places, or with damaged bytes."""
    content = json.dumps(mutated(draw, valid, draw.choice([1, 1, 2, 4]))).encode()
    return damaged(draw, content) if draw.random() < 0.4 else content


def refusal_of(call: Callable[[], object], kind: type[TabrankError] = TabrankError) -> TabrankError | None:
    """Return the error of the refusal, None if accepted; any other exception fails the test."""
    try:
        call()
    except kind as refusal:
        return refusal
    return None


@drawn(200, 10_000)
def test_a_request_is_decoded_or_refused(seeds: range, surface: Surface) -> None:
    for seed in seeds:
        content = body(random.Random(seed), REQUEST)
        with soon(content):
            refusal = refusal_of(partial(decode_request, content, surface, event_clock=False), RequestError)
        assert refusal is None or getattr(refusal, "status", 0) in (400, 422)


@drawn(200, 10_000)
def test_a_batch_of_records_is_decoded_or_refused(seeds: range, surface: Surface) -> None:
    for seed in seeds:
        content = body(random.Random(seed), RECORDS)
        with soon(content):
            refusal = refusal_of(partial(decode_batch, content, surface, event_clock=False), RequestError)
        assert refusal is None or getattr(refusal, "status", 0) in (400, 422)


DEEP = b"[" * 500_000


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        b'{"viewer": "v", "candidates": [], "context": {"hour": ' + DEEP,
        b'{"viewer": "v", "candidates": [], "context": {"hour": ' + b'{"a":' * 300_000,
        b'{"viewer": "v", "candidates": [], "' + b"z" * 2_000_000 + b'": 1}',
        b'{"viewer": "v", "candidates": [], "context": {"' + b"hour" * 500_000 + b'": 1}}',
        b'{"viewer": "v", "candidates": [], "context": {"hour": ' + b"9" * 2_000_000 + b"}}",
        b'{"records": [' + DEEP,
        b'{"records": [{"type": "viewer", "id": "a", "fields": {"language": ' + DEEP,
    ],
)
def test_deep_and_long_bodies_are_refused_in_few_words(content: bytes, surface: Surface) -> None:
    for decode in (decode_request, decode_batch):
        with soon(content[:80]), pytest.raises(RequestError) as refusal:
            decode(content, surface, event_clock=False)
        assert refusal.value.status in (400, 422)
        assert len(refusal.value.detail) < 1_000


def test_a_key_that_comes_twice_is_found_soon_among_many() -> None:
    content = "{" + ",".join(f'"k{i}":0' for i in (*range(100_000), 99_999)) + "}"
    with soon("many keys"), pytest.raises(TabrankError, match="the key 'k99999' comes twice"):
        json_value(content, "manifest")


def toml(value: Any) -> str:
    """Format a value as TOML, which has no null."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value if item is not None) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)


def read_to_the_end(text: str) -> None:
    """A surface that can be read can be served: its state and features are computed."""
    with soon(text[:80]):
        refusal = refusal_of(lambda: read_surface(text, "tiny.toml"))
        if refusal is not None:
            assert str(refusal).startswith("tiny.toml: ")
            return
        schema = Schema(read_surface(text, "tiny.toml"))
    rows = np.zeros(2, np.int64)
    context = schema.context_rows([{}])
    Features(schema).compute(
        *(schema.blank("viewer"), schema.blank("candidate", 2), context, rows, np.array([5])),
        CandidateRows(schema).values_of(rows),
    )


@drawn(100, 5_000)
def test_a_surface_is_read_or_refused(seeds: range) -> None:
    document = tomllib.loads(TOML)
    for seed in seeds:
        draw = random.Random(seed)
        if seed % 3:
            changed = mutated(draw, document, draw.choice([1, 1, 2]))
            pairs = changed.items() if isinstance(changed, dict) else {"name": changed}.items()
            read_to_the_end("\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in pairs if v is not None))
        else:
            read_to_the_end(damaged(draw, TOML.encode()).decode("utf-8", "replace"))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 3_000,
        "a = " + "9" * 5_000,
        ".".join("a" * 50_000) + " = 1",
        TOML.replace('within = "10s"', f'within = "{"9" * 400}d"'),
        TOML.replace('half_life = "10s"', f'half_life = "0.{"0" * 330}1s"'),
        "#" * 1_000_000,
    ],
)
def test_a_surface_that_asks_for_too_much_is_refused(text: str) -> None:
    with soon(text[:80]), pytest.raises(TabrankError, match=r"tiny\.toml"):
        read_surface(text, "tiny.toml")


def laughs(first: str, line: str, num_lines: int) -> str:
    """Each line stands for several of the line before."""
    letters = [chr(ord("a") + i) for i in range(num_lines + 1)]
    lines = (line.format(new=new, old=old) for old, new in pairwise(letters))
    return "\n".join([first, *lines])


@drawn(8, 500)
def test_a_configuration_is_read_or_refused(seeds: range, tmp_path: Path) -> None:
    document = yaml.safe_load(Path("cluster.yaml").read_text())
    path = tmp_path / "cluster.yaml"
    for seed in seeds:
        draw = random.Random(seed)
        content = yaml.safe_dump(
            mutated(draw, document, draw.choice([1, 1, 2, 4])), allow_unicode=True
        ).encode()
        path.write_bytes(damaged(draw, content) if seed % 3 == 0 else content)
        refusal = refusal_of(partial(read, path))
        assert refusal is None or "cluster.yaml" in str(refusal)


def test_a_configuration_of_thousands_of_mistakes_is_refused_soon(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    keys = ", ".join(f"num_replica{i}: 1" for i in range(1_200))
    path.write_text(
        f"applications:\n- import_path: serve.app:build\n  deployments:\n  - {{name: Scorer, {keys}}}\n"
    )
    with pytest.raises(TabrankError, match="num_replica1199"):
        read(path)


@drawn(40, 1_000)
def test_a_damaged_log_is_read_or_refused(seeds: range, tmp_path: Path, surface: Surface) -> None:
    write_log(tmp_path / "log", tables())
    paths = sorted((tmp_path / "log").iterdir())
    for seed in seeds:
        draw = random.Random(seed)
        path = draw.choice(paths)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(flipped) if seed % 2 else damaged(draw, whole))
        with soon(seed):
            replayed_or_refused(tmp_path / "log", surface)
        path.write_bytes(whole)


def replayed_or_refused(log: Path, surface: Surface) -> None:
    """A log that can be read can be replayed."""
    refusal_of(lambda: Replay(Schema(surface), read_log(log, surface)).finish())


ODD_COLUMNS: tuple[Callable[[int], pa.Array], ...] = (
    lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    lambda n: pa.array([2**53 + 1] * n),
    lambda n: pa.array([-(2**63)] * n),
    lambda n: pa.array([1.5] * n),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([float("inf")] * n),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([""] * n),
    lambda n: pa.array(["["] * n),
    lambda n: pa.array(["[" * 100_000] * n),
    lambda n: pa.array(['{"a": {"price": "x"}}'] * n),
    lambda n: pa.array(['{"a": {"nothing": 1}}'] * n),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.nulls(n),
    lambda n: pa.nulls(n, pa.string()),
    lambda n: pa.array([["x", "x"]] * n),
    lambda n: pa.array([[None]] * n, pa.list_(pa.string())),
    lambda n: pa.array([[["x"]]] * n),
    lambda n: pa.array([["x"]] * n, pa.large_list(pa.large_string())),
    lambda n: pa.array([{"hour": "x"}] * n),
    lambda n: pa.array([{"hour": 1}] * n),
)
MORE_COLUMNS = ("seq", "seen_seq", "stated", "removed", "traffic", "ends_ms", "ts_ms", "context")


@drawn(40, 600)
def test_a_log_of_odd_columns_is_read_or_refused(seeds: range, tmp_path: Path, surface: Surface) -> None:
    for seed in seeds:
        draw = random.Random(seed)
        changed = tables()
        name = draw.choice(sorted(changed))
        of = changed[name]
        column = draw.choice([*of.column_names, *MORE_COLUMNS])
        odd = draw.choice(ODD_COLUMNS)(len(of))
        there = column in of.column_names
        changed[name] = (
            of.set_column(of.column_names.index(column), column, odd)
            if there
            else of.append_column(column, odd)
        )
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        write_log(tmp_path / "log", changed)
        replayed_or_refused(tmp_path / "log", surface)


@drawn(12, 300)
def test_an_artifact_of_anything_is_loaded_or_refused(seeds: range, tmp_path: Path) -> None:
    """Damage an artifact whose hashes are right, as an attacker or a defective export would."""
    rng = np.random.default_rng(0)
    network = random_network(rng, random_encoder(rng, 4, 1, 1), NetworkConfig(n_steps=2))
    files, manifest = artifact_files(network, rng)
    plain = {key: value for key, value in manifest.items() if key != "version"}
    for seed in seeds:
        draw = random.Random(seed)
        changed, said = dict(files), plain
        match draw.randrange(6):
            case 0:
                changed["encoder.json"] = json.dumps(
                    mutated(draw, json.loads(files["encoder.json"]))
                ).encode()
            case 1:
                said = mutated(draw, plain)
                said = said if isinstance(said, dict) else {}
            case number:
                name = ("encoder.json", "weights.safetensors", "model.onnx", "golden.safetensors")[number - 2]
                changed[name] = damaged(draw, files[name])
        folder = tmp_path / f"a{seed}"
        save(folder, changed, {**said, "version": manifest["version"]})
        backends: tuple[Literal["onnx", "torch"], ...] = ("onnx", "torch")
        for backend in backends:
            with soon(seed):
                refusal = refusal_of(partial(load_scorer, folder, backend), ArtifactRefused)
            assert refusal is None or str(folder) in str(refusal)
        shutil.rmtree(folder)
