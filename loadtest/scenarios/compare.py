"""`loadtest compare`: tabrank and plain FastAPI run at once and take turns under the same loads.

Because they take turns, a change of the machine's speed affects both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from loadtest.generator.offer import OfferedLoad, offering
from loadtest.measure.measure import Requests, rounded
from loadtest.measure.timeline import timeline
from loadtest.measure.verdict import REMEDY, Verdict
from loadtest.report.compare import NUMBERS, window_line, write_compare
from loadtest.report.report import Report
from loadtest.scenarios.bench import KEPT_UP, Bench
from loadtest.targets.processes import await_full_answer, marker_of
from loadtest.targets.running import cpu_by_process
from loadtest.targets.services import TargetService, fastapi
from loadtest.targets.workspace import Progress, Workspace
from loadtest.workload.profiles import Block

CONFIG = Path("cluster.yaml")


@dataclass(frozen=True)
class Load:
    """Closed loop on a number of connections, or an open loop at a rate."""

    connections: int = 0
    rate_rps: float = 0.0


LOADS = {
    **{f"closed loop × {number}": Load(connections=number) for number in (1, 8, 32, 64)},
    **{f"open loop, {rate}/s": Load(rate_rps=float(rate)) for rate in (10, 100, 900)},
}
WARM_UP, WARM_UP_S = LOADS["closed loop × 8"], 5
# If the highest ratio of a round is more than this many times the lowest, the median says nothing.
MOST_SPREAD = 1.5
# If the generator was late in a larger share of the open-loop seconds, the comparison is void.
MOST_LATE = 0.1


def run_compare(work: Workspace, out: Path, emit: Progress, seconds: int, rounds: int = 5) -> Report:
    """Start both services, load them in turns, stop them, and write the report to `out`.

    At each load there are `rounds` rounds, in each of which every service is loaded for `seconds`
    seconds.

    Raises:
        LoadtestError: if a service does not start, or does not recover from a load.
    """
    with Bench.locked(work, CONFIG, emit) as bench, ExitStack() as running:
        services = (fastapi(work), bench.service)
        footprints = {
            service.name: asdict(running.enter_context(bench.started(service))) for service in services
        }
        for service in services:
            offer_window(bench, service, WARM_UP, WARM_UP_S)
        loads = {at: alternate(bench, services, at, rounds, seconds) for at in LOADS}
    verdict, reasons = compare_verdict(loads)
    numbers = {"rounds": rounds, "window_s": seconds, "services": footprints, "loads": loads}
    report = {"verdict": verdict, "reasons": reasons, **numbers, **bench.circumstances()}
    write_compare(out, report)
    return report


def alternate(bench: Bench, services: Sequence[TargetService], at: str, rounds: int, seconds: int) -> Report:
    """Offer the load of the name `at` to the running services in turns, and return its numbers.

    The order of the services changes from round to round. A service that does not keep up with a
    rate in its first window gets no further window at this rate.

    Raises:
        LoadtestError: if a service gives no full answer after a window.
    """
    windows: dict[str, list[Report]] = {service.name: [] for service in services}
    for first in (number % len(services) for number in range(rounds)):
        for service in (*services[first:], *services[:first]):
            past = windows[service.name]
            if not past or past[0]["kept_up"]:
                past.append(offer_window(bench, service, LOADS[at], seconds))
                bench.emit(f"  {at}, {window_line(service.name, past[-1])}")
                # Queues of this window must not affect the next one.
                await_full_answer(service, bench.bodies[0], bench.candidates)
    ratios = {key: ratio(windows["tabrank"], windows["fastapi"], key) for key in NUMBERS}
    found = {name: describe(measured) for name, measured in windows.items()}
    return {**asdict(LOADS[at]), "services": found, "ratios": ratios}


def offer_window(bench: Bench, service: TargetService, load: Load, seconds: int) -> Report:
    """Offer a load to a service for some seconds, and return the numbers of this window."""
    marker, blocks, used_us = marker_of(bench.work, service), [Block(seconds)], Counter[str]()
    with offering(
        OfferedLoad(service.url, bench.bodies, bench.candidates, blocks=blocks, **asdict(load))
    ) as offer:
        before = cpu_by_process(marker)
        requests = offer.result().requests
        cpu_us = cpu_by_process(marker) - before
    for (group, _), used in cpu_us.items():
        used_us[group] += used
    return window(requests, load, seconds, bench.slo.generator_late_ms_p99, used_us)


def window(
    requests: Requests, load: Load, seconds: int, late_limit_ms: float, cpu_used_us: Mapping[str, int]
) -> Report:
    """Return the numbers of one service in one window.

    - `rps`: full answers per second that arrived within the window. It and the latencies leave out
      the seconds in which the generator's p99 lateness exceeds its limit, and are None if no other
      second is left. A latency is also None if so many requests failed that it does not exist.
    - `late_s`: the number of seconds left out.
    - `kept_up`: whether nearly all requests were answered in full. Like `ended`, it covers all
      seconds.
    - `ended`: the number of requests by outcome.
    - `cpu_used_us`: the CPU time in µs by group of processes.
    """
    moments = timeline(requests, seconds, [])
    late = [moment.t_s for moment in moments if (moment.late_ms_p99 or 0.0) > late_limit_ms]
    due = requests.where(~np.isin(np.floor(requests.at_s), late))
    in_time, counted = (part.where(part.ended_s < seconds).named_counts()["full"] for part in (requests, due))
    return {
        "seconds": seconds,
        "late_s": len(late),
        "kept_up": bool(load.connections) or in_time >= KEPT_UP * len(requests.ok),
        "rps": counted / (seconds - len(late)) if len(late) < seconds else None,
        **due.percentiles(),
        "ended": requests.named_counts(),
        "cpu_used_us": cpu_used_us,
    }


def describe(windows: Sequence[Report]) -> Report:
    """Return medians and sums over the windows of a service.

    `cpu_us` is the CPU time in µs per full answer, by group of processes.
    """
    ended, cpu_us = Counter[str](), Counter[str]()
    for one in windows:
        ended.update(one["ended"])
        cpu_us.update(one["cpu_used_us"])
    cpu_us["all"] = cpu_us.total()
    in_time = [one for one in windows if one["late_s"] < one["seconds"]]
    found = {key: [one[key] for one in in_time] for key in NUMBERS}
    numbers = {
        "kept_up": windows[0]["kept_up"],
        **{key: median(each) if each and None not in each else None for key, each in found.items()},
        "late_s": sum(one["late_s"] for one in windows),
        "ended": dict(ended),
        "cpu_us": {group: used_us / max(1, ended["full"]) for group, used_us in cpu_us.most_common()},
        "windows": list(windows),
    }
    return dict(rounded(numbers))


def ratio(ours: Sequence[Report], rivals: Sequence[Report], key: str) -> Report | None:
    """Return our number divided by the rival's in the same round: median, lowest and highest.

    The result is None if one of the two did not keep up, or if there is no round in which both have
    this number.
    """
    pairs = [(a[key], b[key]) for a, b in zip(ours, rivals, strict=False)]
    found = [a / b for a, b in pairs if a and b]
    if not found or not (ours[0]["kept_up"] and rivals[0]["kept_up"]):
        return None
    spread = {"median": median(found), "lowest": min(found), "highest": max(found)}
    return dict(rounded(spread)) | {"meaningless": max(found) > MOST_SPREAD * min(found)}


def compare_verdict(loads: Mapping[str, Report]) -> tuple[Verdict, list[str]]:
    """Return the verdict and its reasons.

    It is not held if a service that kept up has no rate, and void if the generator was late.
    """
    every = [(at, *named) for at, load in loads.items() for named in load["services"].items()]
    reasons = [f"{name} was not measured at {at}" for at, name, f in every if f["kept_up"] and not f["rps"]]
    windows = [window for at, _, found in every if loads[at]["rate_rps"] for window in found["windows"]]
    late_s, open_s = (sum(window[key] for window in windows) for key in ("late_s", "seconds"))
    if late_s > MOST_LATE * open_s:
        late = f"the load generator was late in {late_s} of {open_s} open-loop seconds; {REMEDY}"
        return "void", [late, *reasons]
    return ("not held" if reasons else "held"), reasons
