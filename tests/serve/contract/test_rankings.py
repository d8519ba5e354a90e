"""Ids of requests."""

from __future__ import annotations

import random

from serve.contract.rankings import new_request_id


def test_a_process_that_seeds_its_dice_again_draws_no_id_twice():
    drawn = set()
    for _ in range(3):
        random.seed(1)
        drawn |= {new_request_id() for _ in range(10)}
    assert len(drawn) == 30
    assert {len(id_) for id_ in drawn} == {32}
