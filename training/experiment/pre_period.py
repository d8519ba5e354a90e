"""Pre-period of an experiment: the time in which none of its arms can have changed behaviour.

CUPED adjusts by the viewers' behaviour in that time. A covariate that the treatment has changed
would remove part of the effect (Deng, Xu, Kohavi and Walker 2013, section 3.2).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency

from training.experiment.served_log import NONE, Exposures

# Treat two assignments as dependent below this p-value of the independence test.
DEPENDENT_P = 0.001
# An arm with this share has all viewers; the margin covers rounding.
ALL_VIEWERS = 1.0 - 1e-9


def pre_period_end(exposures: Exposures, start_ms: int) -> tuple[int, tuple[str, ...]]:
    """Return the end of the pre-period, and the earlier experiments that end it early.

    It ends at the start of the window, or at the first viewer assigned to one of several arms if
    that is earlier. An arm with all viewers does not count. An earlier experiment with another
    salt has the same effect in both arms and is part of the pre-period. One whose assignment
    depends on ours (the same salt) is not.
    """
    # A share that the log does not hold counts as assigned.
    assigned = ~(exposures.share >= ALL_VIEWERS)
    ours = exposures.rows(assigned & (exposures.arm != NONE))
    end_ms = min(start_ms, int(ours.ts_ms[0])) if len(ours) else start_ms
    arm_of = pd.Series(ours.arm, ours.viewer)
    arm_of = arm_of[~arm_of.index.duplicated()]
    early = exposures.rows(assigned & (exposures.other != NONE) & (exposures.ts_ms < end_ms))
    alike = []
    for name in sorted({name for name, _ in exposures.others}):
        codes = [code for code, (experiment, _) in enumerate(exposures.others) if experiment == name]
        theirs = early.rows(np.isin(early.other, codes))
        if len(theirs) and _are_dependent(theirs, arm_of):
            alike.append(name)
            end_ms = min(end_ms, int(theirs.ts_ms[0]))
    return end_ms, tuple(alike)


def _are_dependent(theirs: Exposures, arm_of: pd.Series) -> bool:
    """Return whether the arms of both experiments are dependent (Pearson's χ² test)."""
    first = ~pd.Series(theirs.viewer).duplicated().to_numpy()
    ours = arm_of.reindex(theirs.viewer[first])
    known = ours.notna().to_numpy()
    table = pd.crosstab(theirs.other[first][known], ours.to_numpy()[known]).to_numpy()
    return min(table.shape) > 1 and bool(chi2_contingency(table, correction=False).pvalue < DEPENDENT_P)
