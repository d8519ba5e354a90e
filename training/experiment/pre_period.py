"""The time before an experiment, in which none of its arms can have changed what viewers did.

CUPED adjusts by what viewers did then, and takes off whatever of the effect is in it (Deng, Xu, Kohavi and Walker
2013, section 3.2: the covariate must not be affected by the treatment).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency

from training.experiment.served_log import NONE, Exposures

ALIKE_P = 0.001
EVERYBODY = 1.0 - 1e-9


def untouched(exposures: Exposures, start_ms: int) -> tuple[int, tuple[str, ...]]:
    """The end of that time, and the earlier experiments for which it ends before this one's start.

    It ends with the start of the window or the first viewer who was dealt to one of several arms, whichever was first;
    an arm that everybody had parts nobody. An earlier experiment that dealt by another salt has its effect in both
    arms of this one alike, and counts as before; one whose arms hang together with ours (the same salt) does not.
    """
    dealt = ~(exposures.share >= EVERYBODY)  # where the log does not say, too
    ours = exposures.rows(dealt & (exposures.arm != NONE))
    end_ms = min(start_ms, int(ours.ts_ms[0])) if len(ours) else start_ms
    arm_of = pd.Series(ours.arm, ours.viewer)
    arm_of = arm_of[~arm_of.index.duplicated()]
    early = exposures.rows(dealt & (exposures.other != NONE) & (exposures.ts_ms < end_ms))
    alike = []
    for name in sorted({name for name, _ in exposures.others}):
        codes = [code for code, (experiment, _) in enumerate(exposures.others) if experiment == name]
        theirs = early.rows(np.isin(early.other, codes))
        if len(theirs) and _hang_together(theirs, arm_of):
            alike.append(name)
            end_ms = min(end_ms, int(theirs.ts_ms[0]))
    return end_ms, tuple(alike)


def _hang_together(theirs: Exposures, arm_of: pd.Series) -> bool:
    """Whether a viewer's arm there tells something of the arm here (Pearson's χ² test of independence)."""
    first = ~pd.Series(theirs.viewer).duplicated().to_numpy()
    ours = arm_of.reindex(theirs.viewer[first])
    known = ours.notna().to_numpy()
    table = pd.crosstab(theirs.other[first][known], ours.to_numpy()[known]).to_numpy()
    return min(table.shape) > 1 and bool(chi2_contingency(table, correction=False).pvalue < ALIKE_P)
