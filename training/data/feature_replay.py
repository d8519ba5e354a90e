"""Recompute the features of logged exposures, for the audit and the counterfactual check."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from serve.features.matrix import Features, Matrix
from serve.features.slots import I64
from serve.log.reader import Log
from serve.log.replay import Replay


def recompute_features(
    features: Features, log: Log, replay: Replay, exposures: I64
) -> Iterator[tuple[int, Matrix]]:
    """Yield (index in the log, features of the candidates as shown) for each of the exposures.

    Exposures come in the order of the state that they saw. The replay only moves forward, so it can
    be used once.
    """
    contexts = log.exposures["context"].combine_chunks()
    for i in exposures[np.argsort(replay.sees[exposures], kind="stable")].tolist():
        replay.advance_to(int(replay.sees[i]))
        shown = np.arange(replay.first[i], replay.first[i + 1])
        yield (
            i,
            features.compute(
                replay.state.viewers.table[replay.exposure_viewer[i : i + 1]],
                replay.candidates(shown),
                features.schema.context_rows([contexts[i].as_py() or {}]),
                np.zeros(len(shown), np.int64),
                replay.exposure_ms[i : i + 1],
            ),
        )
