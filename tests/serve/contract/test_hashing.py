from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.contract.hashing import hash64

# Hashes of '', 'jazz' and 'Ünïcode ☂'. Stored rows hold them, so they must not change.
HASHES = [4488425305882972689, 5345941074273896054, 17818300888406019453]


class Zeros:
    def digest(self) -> bytes:
        return bytes(8)


def test_the_hash_of_a_string_never_changes() -> None:
    assert [hash64(value) for value in ("", "jazz", "Ünïcode ☂")] == HASHES


def test_another_process_hashes_alike_whatever_its_hash_seed() -> None:
    code = "from serve.contract.hashing import hash64; print(hash64('jazz'))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    assert int(answer.stdout) == hash64("jazz")


@given(st.text())
def test_a_hash_fits_64_bits_and_is_never_the_missing_one(value: str) -> None:
    assert 0 < hash64(value) < 1 << 64


def test_a_digest_of_zeros_becomes_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: Zeros())
    assert hash64.__wrapped__("jazz") == 1


def test_a_lone_surrogate_has_a_hash() -> None:
    assert hash64("\ud800") != hash64("\ud801")


def test_the_cache_is_bounded() -> None:
    assert hash64.cache_info().maxsize is not None
