"""Our settings in `cluster.yaml`: `args` rebuild the application, `user_config` changes live.

Each setting is stated here alone: its type, range, default and description. From these come
validation, the suggestions for unknown keys, and `serve/schemas/cluster.json` for editors.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, WithJsonSchema, field_validator
from pydantic.json_schema import SkipJsonSchema

from serve.config.slate import MAX_RULES, MAX_TEXT, Rule
from serve.contract.errors import TabrankError, did_you_mean
from serve.contract.typed_reader import STRICT, Between, ByName, ItemName, checked_by, read, refusal
from serve.contract.validation import milliseconds
from serve.features.baseline import NO_RULE
from serve.features.experiment_metrics import metrics_of, no_metric
from serve.features.outcomes import Weight, misfits
from serve.features.surface import Surface, load_surface, read_surface
from serve.log.declaration import MAX_BYTES, Declaration
from serve.model.artifact import CANARY as CANARY_POINTER
from serve.model.artifact import CURRENT as CURRENT_POINTER
from serve.model.artifact import VERSION, Artifact, peek, pointed, require
from serve.model.scorer_cache import MAX_VERSIONS
from serve.model.scorers import Backend

CURRENT, CANARY = "current", "canary"
HEURISTICS = POPULAR, BASELINE, SHUFFLE, NOOP = ("popular", "baseline", "shuffle", "noop")
SCORERS = (CURRENT, CANARY, *HEURISTICS)
# The arm of the viewers who take part in no experiment.
HOLDOUT = "holdout"
# Settings of an arm that only a model can have, and why.
OF_MODELS = {
    "explore": "orders are drawn from a model's scores",
    "weights": "weights are of a model's predictions",
}
NO_KEY = hashlib.sha256(b"").hexdigest()


def _check_name(value: object, where: str) -> str:
    # YAML does not read a bare on, off or 1 as a string.
    if not isinstance(value, str) or not value:
        raise TabrankError(f"{where}: {value!r} must be a string of one character or more; put it in quotes")
    return value


def _check_arm_name(value: object, where: str) -> str:
    if value == HOLDOUT:
        raise TabrankError(f"{where}: this name is reserved for the viewers held out; use another name")
    return _check_name(value, where)


def _check_time(value: object, where: str) -> int:
    if value == "now":
        raise TabrankError(f"{where}: now would differ in each replica and report; write the time")
    # YAML reads it as a time, which Ray cannot pass on.
    if not isinstance(value, str):
        raise TabrankError(f'{where}: {value} must be in quotes: "2026-01-31T12:00:00Z"')
    return milliseconds(value, where)


def _refuse_a_key(values: object) -> object:
    """Refuse anything but a table. The message does not repeat the value, which may be a key."""
    if not isinstance(values, dict):
        raise ValueError(
            "must be a table with the SHA-256 of the key, never the key; "
            "`python -m serve key` creates one and prints the lines"
        )
    return values


# Pairs of the path of a setting and the error about it.
Misfits = Iterator[tuple[tuple[Any, ...], str]]
NoKey = BeforeValidator(_refuse_a_key)
Name = Annotated[str, checked_by(_check_name), Field(min_length=1)]
Share = Annotated[float, Between(0, 1)]
Time = Annotated[Annotated[int, checked_by(_check_time)] | None, WithJsonSchema({"type": ["string", "null"]})]


@dataclass(frozen=True)
class AppArgs:
    """The application's `args`. Paths are relative to the folder of `cluster.yaml`.

    Attributes:
        surface: Name of a shipped surface, or path of a TOML file.
        store: lmdb:PATH on one machine, or redis://HOST:PORT/DB.
        models: Folder of the published artifacts, or s3://BUCKET/KEY.
        log: Folder of the log of exposures and events, or s3://BUCKET/KEY.
        backend: What runs the model: onnx on the CPU, or torch, which pays off only with a GPU.
        clock: `wall` takes the time from the machine. `event` takes it from the requests, for
            replays and tests.
        keep_log_days: Delete log segments that are older, and keep a snapshot in their place; 0
            keeps all. Files that the service did not write, such as those of an import, stay.
        keep_viewers_days: Forget a viewer this many days after the viewer's last record, or after
            `serve load` if that is later; 0 forgets nobody. Nobody is forgotten while no records
            arrive.
    """

    __pydantic_config__ = STRICT
    surface: str
    store: str = "lmdb:var/store"
    models: str = "var/models"
    log: str = "var/log"
    backend: Backend = "onnx"
    clock: Literal["wall", "event"] = "wall"
    keep_log_days: Annotated[int, Between(0, 36_500)] = 30
    keep_viewers_days: Annotated[int, Between(0, 36_500)] = 90
    # The text of the surface that runs. No file has this key: a deploy adds it. A process that
    # starts later uses this text, whatever became of the surface's file.
    surface_text: Annotated[str | None, SkipJsonSchema()] = None

    def load_surface(self, base: Path) -> Surface:
        """Return the surface: as it was deployed, or else as its file is now.

        The file is that of a shipped surface, or a TOML file relative to `base`.
        """
        if self.surface_text is not None:
            return read_surface(self.surface_text, self.surface)
        return load_surface(str(base / self.surface) if self.surface.endswith(".toml") else self.surface)

    def pinned(self, base: Path) -> AppArgs:
        """Return the arguments with the text of the surface, which all replicas then share."""
        return replace(self, surface_text=self.load_surface(base).text)

    def edit(self, base: Path) -> str:
        """Return in words how the surface's file differs from the deployed text; "" if not."""
        try:
            text = replace(self, surface_text=None).load_surface(base).text
        except TabrankError as error:
            return f"cannot be read ({error})"
        return "" if self.surface_text in (None, text) else "has changed since the deploy"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "args") -> AppArgs:
        """Read strictly; raise TabrankError with key, value and remedy."""
        return read(cls, values, where)


@dataclass(frozen=True)
class Arm:
    """One side of an experiment: a scorer by name, and its share of viewers.

    Attributes:
        scorer: What ranks. A heuristic: `popular`, `baseline` (the surface's rule), `shuffle` or
            `noop`. Or a model: `current` (the promoted version), `canary` (the promoted version
            while there is no canary), or a published version by name.
        share: Share of the viewers that this arm gets.
        explore: Share of the arm's rankings whose order is drawn at random by the scores. `training
            experiment offline` needs some.
        weights: What one unit of an outcome is worth in this arm. Outcomes that it does not name
            keep the surface's weights.
        slate: Rules that change the order: boost, spread and limit. A boost needs scores; the
            others apply to the popular order too.
    """

    __pydantic_config__ = STRICT
    name: ItemName
    scorer: Annotated[
        str,
        Field(json_schema_extra={"anyOf": [{"enum": list(SCORERS)}, {"pattern": f"^{VERSION.pattern}$"}]}),
    ]
    share: Share
    explore: Share = 0.0
    weights: Mapping[str, Weight] = field(default_factory=dict)
    slate: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()

    @property
    def by_model(self) -> bool:
        """Return True if an artifact ranks, rather than a heuristic."""
        return self.scorer not in HEURISTICS

    @field_validator("scorer")
    @classmethod
    def _is_known(cls, scorer: str) -> str:
        if not VERSION.fullmatch(scorer) and scorer not in SCORERS:
            near = did_you_mean(scorer, SCORERS)
            there = f"{' There' if near else '; there'} are {', '.join(SCORERS)} and the versions that are published"
            raise ValueError(f"there is no scorer {scorer!r}{near}{there}")
        return scorer

    @field_validator(*OF_MODELS)
    @classmethod
    def _has_scores(cls, value: object, info: ValidationInfo) -> object:
        scorer = info.data.get("scorer")
        if value and scorer in HEURISTICS:
            raise ValueError(f"{OF_MODELS[str(info.field_name)]}, and {scorer} has none; leave it out")
        return value

    @field_validator("slate")
    @classmethod
    def _is_sound(cls, slate: tuple[Rule, ...], info: ValidationInfo) -> tuple[Rule, ...]:
        scored = [(k, rule) for k, rule in enumerate(slate) if rule.one.needs_scores]
        if scored and (scorer := info.data.get("scorer")) in HEURISTICS:
            why = f"and {scorer} has none; leave it out"
            raise refusal(*(((k, rule.name), f"{rule.one.needs_scores}, {why}") for k, rule in scored))
        if (num := sum(len(rule.text) for rule in slate)) > MAX_TEXT:
            raise ValueError(
                f"the rules have {num:,} characters in words, and may have {MAX_TEXT:,}; shorten them"
            )
        if again := [k for k, rule in enumerate(slate) if rule in slate[:k]]:
            raise refusal(*(((k,), "this rule is above already; leave it out") for k in again))
        return slate

    def lacks(self, artifact: Artifact) -> str | None:
        """Return why an artifact does not predict what the arm weighs; None if it does."""
        lacking = [name for name in self.weights if name not in artifact.outcomes]
        if not lacking:
            return None
        weighed, predicted = ", ".join(self.weights), ", ".join(artifact.outcomes)
        return (
            f"arm {self.name} weighs {weighed}, and version {artifact.version} predicts {predicted}; leave out "
            f"{', '.join(lacking)}, or give it a weight in the surface and fit"
        )


@dataclass(frozen=True)
class Experiment:
    """Arms, to which a weighted rendezvous hash of (salt, viewer) assigns, and report settings.

    Attributes:
        name: Name of the experiment in the log and in reports.
        salt: A new salt reassigns the viewers.
        arms: Arms by name; their shares sum to 1.
        holdout: Share of viewers who take part in no experiment and get the popular order.
        start: Time from which viewers take part, in ISO 8601 and in quotes.
        end: Time from which nobody takes part any more, in ISO 8601 and in quotes.
        primary_metric: The metric that decides: NAME_per_viewer or NAME_per_exposure of an outcome,
            active_days or exposures_per_viewer. Default: the first outcome per viewer.
        guardrails: Metrics that must not get worse, each with the largest relative loss that is
            tolerated, such as 0.02. The treatment wins only once the data show that the loss is
            smaller.
        smallest_effect: Smallest relative change of the primary metric that matters.
        min_days: Whole days (24 hours) that must pass before a report says won or lost.
        min_exposures: Exposures that both arms must have before a report says won or lost.
    """

    __pydantic_config__ = STRICT
    name: Name
    salt: Name
    arms: Annotated[tuple[Arm, ...], ByName(Annotated[Name, checked_by(_check_arm_name)])]
    holdout: Annotated[float, Between(0, 0.5)] = 0.0
    start_ms: Annotated[Time, Field(alias="start")] = None
    end_ms: Annotated[Time, Field(alias="end")] = None
    primary_metric: str | None = None
    guardrails: Mapping[str, Annotated[float, Between(1e-4, 0.99)]] = field(default_factory=dict)
    smallest_effect: Annotated[float, Between(1e-4, 1)] = 0.02
    min_days: Annotated[int, Between(0, 365)] = 7
    min_exposures: Annotated[int, Between(0, 1_000_000_000)] = 500

    def runs(self, now_ms: int) -> bool:
        """Return True if viewers take part at this time."""
        return (self.start_ms or 0) <= now_ms and (self.end_ms is None or now_ms < self.end_ms)

    def declaration(self, surface: Surface) -> Declaration:
        """Return what the log keeps of it, with the primary metric by name."""
        metric = self.primary_metric or metrics_of(surface)[0].name
        logged = {name: getattr(self, name) for name in Declaration.__struct_fields__}
        return Declaration(
            **logged | {"primary_metric": metric, "arms": {arm.name: arm.share for arm in self.arms}}
        )

    def misfits(self, surface: Surface) -> Misfits:
        """Yield the path of each metric that the surface does not give, and the error.

        Names that are too long for the log are errors too.
        """
        if (size := len(self.declaration(surface).text.encode())) > MAX_BYTES:
            yield (
                ("arms",),
                f"with guardrails, the log takes {size:,} bytes of {MAX_BYTES:,}; shorten their names",
            )
        named: dict[tuple[str, ...], str] = {("guardrails", name): name for name in self.guardrails}
        if self.primary_metric is not None:
            named["primary_metric",] = self.primary_metric
        known = {metric.name for metric in metrics_of(surface)}
        yield from ((path, no_metric(name, surface)) for path, name in named.items() if name not in known)

    @field_validator("arms")
    @classmethod
    def _are_whole(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if not arms:
            raise ValueError("the table is empty; add at least one arm, such as popular")
        total = sum(arm.share for arm in arms)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares sum to {total:g}; they must sum to 1")
        num_versions = len({arm.scorer for arm in arms if VERSION.fullmatch(arm.scorer)})
        if num_versions > MAX_VERSIONS:
            raise ValueError(
                f"they name {num_versions} artifacts by version; "
                f"a scorer holds {MAX_VERSIONS} beside the promoted one"
            )
        return arms

    @field_validator("end_ms", mode="wrap")
    @classmethod
    def _follows(cls, end: object, read_time: Any, info: ValidationInfo) -> int | None:
        start_ms, end_ms = info.data.get("start_ms"), read_time(end)
        if start_ms is not None and end_ms is not None and start_ms >= end_ms:
            raise ValueError(f"{end} must come after the start")
        return cast(int | None, end_ms)


@dataclass(frozen=True)
class ApiKey:
    """A caller's key and its permissions; only the key's hash is kept.

    Attributes:
        sha256: SHA-256 of the key, as `python -m serve key` prints it.
        requests_per_s: Requests per second that the caller may send. A ranking counts as one
            request per 100 candidates, a batch of events as one per 100 records. Each counts as at
            least one.
        may_choose_arm: The caller may choose the arm with the header X-Arm. Meant for testers.
    """

    __pydantic_config__ = STRICT
    name: ItemName
    sha256: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
    requests_per_s: Annotated[float, Between(0.01, 1_000_000)]
    may_choose_arm: StrictBool = False

    @field_validator("sha256", mode="before")
    @classmethod
    def _is_a_hash(cls, value: object) -> object:
        if not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)):
            raise ValueError(
                "must be the SHA-256 of the key, 64 hexadecimal digits in quotes; "
                "`python -m serve key` creates a key and prints it"
            )
        if value == NO_KEY:
            raise ValueError("is the SHA-256 of an empty key, which would admit everyone; use a real key")
        return value


@dataclass(frozen=True)
class Shadow:
    """A version that scores a share of the current version's batches too, after the answers.

    Attributes:
        version: `canary`, or a published version by name.
        share: Share of the batches.
    """

    __pydantic_config__ = STRICT
    version: Annotated[str, Field(json_schema_extra={"pattern": f"^({CANARY}|{VERSION.pattern})$"})]
    share: Share

    @field_validator("version")
    @classmethod
    def _is_a_version(cls, version: str) -> str:
        if version != CANARY and not VERSION.fullmatch(version):
            raise ValueError(f"{version!r} is neither {CANARY} nor the version of a published artifact")
        return version


@dataclass(frozen=True)
class Limits:
    """Limits for a version on trial, `user_config.guard`; beyond one, it is rolled back.

    Attributes:
        enabled: Roll back automatically.
        watch_s: Seconds for which a promoted version is on trial. A canary is on trial as long
            as it is the canary.
        max_psi: Largest population stability index (PSI, how far two distributions differ) between
            its scores and those of the version that it replaces, beyond what is noise.
        max_slowdown: Largest scoring time, as a multiple of that of the version that it replaces,
            for the same rows.
        max_failed: Largest share of its calls that fail.
    """

    __pydantic_config__ = STRICT
    enabled: StrictBool = True
    watch_s: Annotated[float, Between(0, 86_400)] = 600.0
    max_psi: Annotated[float, Between(0.01, 100)] = 0.25
    max_slowdown: Annotated[float, Between(1.1, 1_000)] = 3.0
    max_failed: Annotated[float, Between(0.01, 1)] = 0.2


@dataclass(frozen=True)
class UserConfig:
    """Live settings of `FeatureFetch`; a change restarts no replica.

    Attributes:
        experiment: Arms, shares and what the report needs.
        deadline_ms: Deadline of a request that states none. A request that has no scores after
            90 % of its deadline gets the popular order.
        max_batch_candidates: Most candidates in a batch.
        max_batches_in_flight: Most batches in progress at once.
        stale_after_ms: Answers report `stale_features` once the features are older than this.
        log_features: Share of rankings whose feature matrix is logged for the audit. A replica also
            logs at least one live ranking every 30 s. 0 logs none.
        kill_switch: Answer every ranking with the popular order; arms stay assigned.
        load_shedding: Answer the load that exceeds the capacity with the popular order or with 429,
            so that the p99 of the answers stays low.
        api_keys: Keys of the callers, by name. Without keys, requests from this machine need none.
        shadow: A second version that scores some batches too, after the answers were sent.
        guard: Limits beyond which a canary or a recently promoted version is rolled back.
    """

    __pydantic_config__ = STRICT
    experiment: Experiment = Experiment("launch", "launch", (Arm("model", CURRENT, 1.0),))
    deadline_ms: Annotated[int, Between(1, 60_000)] = 100
    max_batch_candidates: Annotated[int, Between(1, 100_000)] = 1760
    max_batches_in_flight: Annotated[int, Between(1, 64)] = 2
    stale_after_ms: Annotated[int, Between(500, 3_600_000)] = 5_000
    log_features: Share = 0.001
    kill_switch: StrictBool = False
    load_shedding: StrictBool = True
    api_keys: Annotated[tuple[Annotated[ApiKey, NoKey], ...], ByName(Name), NoKey] = ()
    shadow: Shadow | None = None
    guard: Limits = Limits()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "user_config") -> UserConfig:
        """Read strictly; raise TabrankError with key, value and remedy."""
        return read(cls, values, where)

    @property
    def versions(self) -> dict[tuple[str, ...], str]:
        """The versions that arms and shadow name, by the path of the key."""
        named: dict[tuple[str, ...], str] = {
            ("experiment", "arms", arm.name, "scorer"): arm.scorer for arm in self.experiment.arms
        }
        if self.shadow is not None:
            named["shadow", "version"] = self.shadow.version
        return {path: version for path, version in named.items() if VERSION.fullmatch(version)}

    def misfits(self, surface: Surface, models: Path, *, of_pointers: bool = True) -> Misfits:
        """Yield the path of each setting that the surface or the models do not support, and why.

        Without `of_pointers`, weights are not compared with the versions that `current` and
        `canary` name now.
        """
        for arm in self.experiment.arms:
            if arm.scorer == BASELINE and surface.baseline is None:
                yield ("experiment", "arms", arm.name, "scorer"), NO_RULE
            for k, rule in enumerate(arm.slate):
                at: tuple[Any, ...] = ("experiment", "arms", arm.name, "slate", k)
                yield from ((at + below, error) for below, error in rule.misfits(surface))
            at = ("experiment", "arms", arm.name, "weights")
            yield from ((at + step, error) for step, error in _misweighed(arm, surface, models, of_pointers))
        for below, error in self.experiment.misfits(surface):
            yield ("experiment", *below), error
        for path, version in self.versions.items():
            try:
                require(models, version)
            except TabrankError as missing:
                yield path, str(missing)

    @field_validator("api_keys")
    @classmethod
    def _differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        names: dict[str, str] = {}
        for key in keys:
            first = names.setdefault(key.sha256, key.name)
            if first != key.name:
                raise refusal(((key.name, "sha256"), f"it is also the key of {first!r}; create another"))
        return keys


def _misweighed(arm: Arm, surface: Surface, models: Path, of_pointers: bool) -> Misfits:
    """Yield each weight of an arm for whose outcome the surface or a version has no place."""
    if not arm.weights:
        return
    if problems := [*misfits(surface.worth | dict(arm.weights), surface.outcomes, surface.worth)]:
        yield from problems
        return
    # Once the canary ends, the current version ranks for its arm, so it must fit too.
    pointers = {CURRENT: (CURRENT_POINTER,), CANARY: (CANARY_POINTER, CURRENT_POINTER)}.get(arm.scorer)
    named: list[str | None] = [arm.scorer]
    if pointers is not None:
        # A broken pointer is diagnosed elsewhere.
        with suppress(TabrankError):
            named = [pointed(models, pointer) for pointer in pointers] if of_pointers else []
    for version in filter(None, named):
        artifact = peek(models / version)
        if artifact is not None and (why := arm.lacks(artifact)):
            yield (), why


@lru_cache(64)
def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
