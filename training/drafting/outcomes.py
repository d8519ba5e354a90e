"""Draft outcomes: which events follow exposures in a log, their amounts, and hints at weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.validation import UNITS_MS, duration
from serve.features.outcomes import MAX_CAP, MAX_OUTCOMES, RESERVED, Outcome
from training.data.amounts import amounts
from training.drafting.funnel import REJECTS, STAYS, EventStats, Funnel, round_up_ms
from training.drafting.profile import codes_of
from training.drafting.suggest import Spec, free_name

# A cap covers this share of the stays or values. Above it, a stay that somebody forgot to end would
# count for hours.
COVERED_STAYS, COVERED_SUMS = 0.95, 0.99
# A kind of event has an amount if more than this share of its events has a positive value.
MOST = 0.5
# A name may have 32 characters. The other four are for a number that makes the name unique.
MAX_NAME = 28


@dataclass(frozen=True)
class DraftedOutcome:
    """An outcome with its spec, as the TOML has it, and the reason for it.

    `weight` is a hint for its weight, and `worth` says what that weight would mean.
    """

    name: str
    spec: Spec
    why: str
    weight: float
    worth: str


def draft_outcomes(tables: dict[str, pa.Table], events: Funnel) -> list[DraftedOutcome]:
    """Return an outcome for each kind of event and for each amount, with the primary one first.

    If these are more than a surface may have, the outcomes of the rarest kinds are left out.
    """
    found: dict[str, DraftedOutcome] = {}
    for h in events.responses:
        for one in (_happens(h, events), *_lasts(h, tables, events), *_adds_up(h, tables, events)):
            plain = re.sub(r"[^a-z0-9_]+", "_", one.name.lower()).lstrip("_0123456789")[:MAX_NAME]
            name = free_name(plain or "outcome", {*found, *RESERVED})
            found[name] = replace(one, name=name)
    return list(found.values())[:MAX_OUTCOMES]


def _happens(h: EventStats, events: Funnel) -> DraftedOutcome:
    """Return the outcome that says whether such an event follows."""
    label, bad = events.event_stats[events.label], h.kind in REJECTS
    why = f"{h.num:,} events, on {h.rate:.2%} of the shown candidates"
    why += f", after {' and '.join(h.after)}" if h.after else ""
    why += f"; {events.window_reason}" if h is label else ""
    why += "" if events.is_counted(h) else "; too few for a feature that counts them"
    worth = f"all {h.kind} together are then worth as much as all {label.kind}"
    worth = f"how many {label.kind} would you give up to spare a viewer one {h.kind}?" if bad else worth
    return DraftedOutcome(h.kind, _spec(h), why, -1.0 if bad else label.positives / h.positives, worth)


def _lasts(h: EventStats, tables: dict[str, pa.Table], events: Funnel) -> Iterator[DraftedOutcome]:
    """Yield the minutes that viewers stay, if the event begins a stay and some stays have ended."""
    until = next((down for down in STAYS.get(h.kind, ()) if down in events.event_stats), None)
    if until is None:
        return
    # Without a viewer, nobody can tell which event ends a stay.
    both = _of(tables["events"], h.kind, until).filter(pc.field("viewer").is_valid())
    kind, ts_ms = (both[name].to_numpy() for name in ("kind", "ts_ms"))
    viewer, candidate = (codes_of(both[name])[0] for name in ("viewer", "candidate"))
    stay = Outcome(h.kind, h.within_ms, until=until, cap=MAX_CAP)
    minutes = amounts(stay, kind, ts_ms, viewer, candidate, value=())[kind == h.kind]
    minutes = minutes[~np.isnan(minutes)]
    if minutes.any():
        cap_ms = round_up_ms(float(np.quantile(minutes, COVERED_STAYS)) * UNITS_MS["m"])
        spec = _spec(h, until=until, cap=duration(cap_ms))
        # The window also leaves time for a stay to end.
        spec["within"] = duration(round_up_ms(h.within_ms + cap_ms))
        mean = float(np.minimum(minutes, cap_ms / UNITS_MS["m"]).mean())
        why = f"minutes; the cap covers {COVERED_STAYS:.0%} of {len(minutes):,} stays that ended"
        worth = f"for a minute: a mean stay of {mean:.3g} minutes is then worth one {events.label}"
        yield DraftedOutcome("stay", spec, why, 1 / mean, worth)


def _adds_up(h: EventStats, tables: dict[str, pa.Table], events: Funnel) -> Iterator[DraftedOutcome]:
    """Yield the sum of the events' values, if most values are positive and not all are equal."""
    values = _of(tables["events"], h.kind)["value"].drop_null().to_numpy()
    positive = values[values > 0]
    if len(positive) > MOST * h.num and np.ptp(positive) > 0:
        cap = min(float(f"{np.quantile(positive, COVERED_SUMS):.2g}"), MAX_CAP)
        spec = _spec(h, sum="value", cap=int(cap) if cap >= 10 else cap, unit="")
        mean = float(np.nanmean(np.clip(values, 0, cap)))
        why = f"fill in the unit; the cap covers about {COVERED_SUMS:.0%} of {len(positive):,} values"
        worth = f"for one unit: a mean {h.kind} of {mean:.3g} then weighs as much as one {events.label}"
        yield DraftedOutcome(f"{h.kind}_value", spec, why, (-1 if "bad" in spec else 1) / mean, worth)


def _spec(h: EventStats, **amount: object) -> Spec:
    bad = {"bad": True} if h.kind in REJECTS else {}
    return {"event": h.kind, **amount, "within": duration(h.within_ms), **bad}


def _of(events: pa.Table, *kinds: str) -> pa.Table:
    return events.filter(pc.is_in(events["kind"], pa.array(kinds)))
