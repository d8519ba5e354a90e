"""Transitions of one version on one replica."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serve.config.settings import Limits
from serve.contract.errors import ArtifactRefused, TabrankError
from serve.rollout.guard import Verdict
from serve.rollout.version_state import State, Version

LIMITS, SLOW = Limits(), Verdict("slow", "3 times")
TRANSITIONS = {
    "hold": lambda version: version.hold(SimpleNamespace(version="new")),
    "refuse": lambda version: version.refuse(ArtifactRefused("row 3")),
    "try": lambda version: version.try_against("old", LIMITS),
    "end": lambda version: version.try_against(None, LIMITS),
    "quarantine": lambda version: version.quarantine(SLOW),
    "roll_back": lambda version: version.roll_back(),
    "release": lambda version: version.release(),
}
# The way into each state, and where each transition leads from there; the others stay.
DRAWN = {
    State.PUBLISHED: ("", {"hold": State.LOADED, "refuse": State.REFUSED, "roll_back": State.ROLLED_BACK}),
    State.LOADED: ("hold", {"try": State.TRIAL, "roll_back": State.ROLLED_BACK}),
    State.TRIAL: (
        "hold try",
        {"end": State.LOADED, "quarantine": State.QUARANTINED, "roll_back": State.ROLLED_BACK},
    ),
    State.QUARANTINED: ("hold try quarantine", {"release": State.LOADED}),
    State.REFUSED: ("refuse", {"release": State.PUBLISHED}),
    State.ROLLED_BACK: ("roll_back", {"release": State.PUBLISHED, "refuse": State.REFUSED}),
}


def version_in(way):
    version = Version("new")
    for step in way.split():
        TRANSITIONS[step](version)
    return version


@pytest.mark.parametrize("state", State)
def test_each_transition_leads_where_it_is_drawn_and_nowhere_else(state):
    way, leads = DRAWN[state]
    for name, transition in TRANSITIONS.items():
        version = version_in(way)
        assert version.state is state
        transition(version)
        assert version.state is leads.get(name, state), name


@pytest.mark.parametrize("state", State)
def test_a_trial_or_a_verdict_belongs_to_its_states_alone(state):
    version = version_in(DRAWN[state][0])
    assert (version.trial is not None) == (state is State.TRIAL)
    assert (version.verdict is not None) == (state in (State.QUARANTINED, State.REFUSED))
    assert version.is_bad == (state in (State.QUARANTINED, State.REFUSED, State.ROLLED_BACK))


def test_a_trial_starts_again_only_if_incumbent_or_limits_change():
    version = version_in("hold try")
    trial = version.trial
    version.try_against("old", LIMITS)
    assert version.trial is trial
    version.try_against("old", Limits(max_psi=1.0))
    assert version.trial is not trial
    assert version.trial.limits.max_psi == 1.0
    version.try_against("older", Limits(max_psi=1.0))
    assert version.trial.incumbent == "older"


def test_a_model_of_another_surface_is_refused_without_a_verdict():
    version = Version("new")
    version.refuse(TabrankError("fit a model for this surface"))
    assert (version.state, version.verdict) == (State.REFUSED, None)


def test_an_arm_keeps_the_artifact_of_a_version_that_was_quarantined():
    assert version_in("hold try quarantine").artifact is not None
