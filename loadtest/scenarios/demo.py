"""Demo: simulate, train, publish, serve, rank and load-test with the project's own commands."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

from loadtest.commands import die_with_parent, run_command
from loadtest.errors import INTERRUPTED
from loadtest.measure.verdict import EXIT_CODES
from loadtest.report.demo import demo_verdict, write_demo
from loadtest.report.report import Report
from loadtest.report.run import TILES, findings
from loadtest.scenarios.topic_story import NUM_JOINS, TopicStory
from loadtest.targets.services import free_port, read_document, write_document
from serve.contract.commands import Parts
from serve.contract.errors import TabrankError
from serve.contract.validation import spelled
from serve.operate.host.machine import describe_machine
from serve.report.rows import number
from serve.storage.atomic_files import exclusive

DEMO = Path("var/demo")
LOG, MODEL, RUN = f"{DEMO}/log", f"{DEMO}/model", f"{DEMO}/run"
# The first 80 % of the log train the model. The rest judges it.
PARTS_OF_LOG = f"{DEMO}/parts"
TRAIN, TEST = f"{PARTS_OF_LOG}/before", f"{PARTS_OF_LOG}/after"
ROWS, DAYS, EPOCHS = 600_000, 1.5, 6
MEASURES = {
    "expected_labels": "joins expected per ranking",
    "ndcg@10": "NDCG@10, on joins as logged",
    "auc": "AUC",
}
LOAD_S = 30


def main() -> int:
    """Run the demo, and return its exit code.

    0: it passed. 1: the service did not hold its limits under load, or the new Space did not rise.
    2: there is no verdict.
    """
    die_with_parent()
    try:
        with exclusive(DEMO / "lock", f"another demo is running in {DEMO}; wait for its end, or stop it"):
            try:
                return _demo()
            finally:
                _run("serve", "down", "--run", RUN)
    except TabrankError as error:
        print(f"\n{error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return 2


def _demo() -> int:
    begun = time.monotonic()
    _run("serve", "down", "--run", RUN)
    for path in DEMO.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _simulate()
    trained = _train()
    story = TopicStory(Path(LOG), Path(RUN))
    url = _publish_and_serve()
    story.open(url)
    answer = _rank(story, url)
    topic = _play(story, url)
    loads = _load_service(url)
    report = {
        **trained,
        "serve": answer,
        "topic": topic,
        "load": loads[-1],
        "headline": loads[0],
        "machine": describe_machine(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    PARTS.end()
    show("\n" + write_demo(report, DEMO))
    show(f"\nFull report: {DEMO / 'report.html'} ({spelled(report['seconds'])})")
    return EXIT_CODES[demo_verdict(report)]


def _simulate() -> None:
    PARTS.begin("1/6  Simulate a world of live audio rooms that a most-popular heuristic ranks.")
    # The log ends now, so that rooms that are live at its end are live for the service too.
    size = ("--rows", str(ROWS), "--days", str(DAYS), "--end", "now")
    show(f"     {_run('training', 'simulate', '--out', LOG, *size).strip()}.")


def _train() -> Report:
    """Fit a model and evaluate it; return this part of the report."""
    PARTS.begin("2/6  Train a TabNet on the first 80 % of the log, on Ray Train.")
    _run("training", "split", "--log", LOG, "--at", "0.8", "--out", PARTS_OF_LOG)
    fit = ("--surface", "spaces", "--log", TRAIN, "--out", MODEL, "--epochs", str(EPOCHS))
    fitted = _run_json("training", "fit", *fit)
    judged = _run_json("training", "evaluate", "--model", MODEL, "--history", TRAIN, "--log", TEST)
    ours, popular = judged["model"], judged["popular"]
    show(f"     {fitted['rows']:,} rows in {spelled(fitted['seconds'])}. On the last 20 %:")
    for key, title in MEASURES.items():
        show(f"     {title}: {number(ours[key], '.3f')} (popular {number(popular[key], '.3f')})")
    train = {
        **{name: fitted[name] for name in ("rows", "seconds")},
        **{name: ours[name] for name in ("auc", "logloss")},
        "ndcg@10": {"model": ours["ndcg@10"], "popular": popular["ndcg@10"]},
        "paired": judged["paired"]["model-popular"],
    }
    return {"train": train, "git": fitted["git"]}


def _publish_and_serve() -> str:
    """Start the service of the shipped `cluster.yaml` with the demo's data; return its URL.

    It gets a free port.
    """
    PARTS.begin("3/6  Publish the model, fill the store and start the service on Ray Serve.")
    _run("training", "publish", "--model", MODEL, "--models", f"{DEMO}/models")
    _run("serve", "load", "--log", LOG, "--store", f"lmdb:{DEMO}/store")
    config = read_document(Path("cluster.yaml"))
    port = free_port()
    config["http_options"]["port"] = port
    places = {"store": "lmdb:store", "models": "models", "log": "log-served"}
    config["applications"][0]["args"] |= places
    write_document(DEMO / "cluster.yaml", config)
    _run("serve", "up", f"{DEMO}/cluster.yaml", "--run", RUN)
    url = f"http://127.0.0.1:{port}"
    show(f"     {url} answers; its API is at {url}/docs.")
    return url


def _rank(story: TopicStory, url: str) -> Report:
    PARTS.begin("4/6  Rank candidates.")
    answer = story.rank(url, story.viewer)
    top, num = answer["ranking"][0], len(answer["ranking"])
    score = f"P(join | looked at) {top['score']:.3f}"
    show(f"     Viewer {story.viewer}: {top['candidate']} first of {num}, {score}.")
    return answer


def _play(story: TopicStory, url: str) -> Report:
    PARTS.begin(f"5/6  {NUM_JOINS} joins on {story.topic!r}: does a new Space rise for this viewer alone?")
    topic = story.play(url)
    for who, place in (("the viewer", topic["viewer"]), ("a control viewer", topic["control"])):
        show(f"     For {who}: from place {place['before']} to {place['after']}.")
    return topic


def _load_service(url: str) -> list[Report]:
    """Load the service, and return the report of each rate that was tried.

    If 900 rankings/s do not hold, 300 are tried too, and decide the verdict.
    """
    PARTS.begin("6/6  Load: 900 rankings/s of 55 candidates, open loop, for half a minute.")
    loads = [_load("headline", url)]
    if loads[0]["verdict"] != "held":
        failed = "No verdict" if loads[0]["verdict"] == "void" else "Not held on this machine"
        show(f"     {failed}. The demo tries 300 rankings/s, which decide the verdict.")
        loads.append(_load("modest", url))
    return loads


def _load(profile: str, url: str) -> Report:
    """Load the service with a profile; show the verdict, the main figures and the reasons."""
    how = ("--profile", profile, "--duration", str(LOAD_S), "--out", f"{DEMO}/load-{profile}")
    found = _run_json("loadtest", "run", *how, "--url", url, "--log", LOG, accept=(0, 1, 2))
    # The report of a run that was impossible has no figures.
    load = {"profile": profile, **found}
    rows = findings(load).rows if "slo" in load else ()
    figures = [f"{name}: {value}" for name, value, _ in rows if name in TILES]
    for line in ("; ".join([load["verdict"], *figures]), *load["reasons"]):
        show(f"     {line}")
    return load


def _run(package: str, *arguments: str, accept: tuple[int, ...] = (0,)) -> str:
    return run_command(package, *arguments, log=DEMO / "demo.log", accept=accept)


def _run_json(package: str, *arguments: str, accept: tuple[int, ...] = (0,)) -> Report:
    report: Report = json.loads(_run(package, *arguments, "--json", accept=accept))
    return report


def show(line: str) -> None:
    """Print one line of the demo."""
    print(line, flush=True)


PARTS = Parts(show)

if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    sys.exit(main())
