"""Tests of the commands of the services, and of the `cluster.yaml` that is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import read_log_ids
from loadtest.measure.polling import within
from loadtest.measure.service import PATH, ask, read_answer
from loadtest.targets.processes import started
from loadtest.targets.running import Target
from loadtest.targets.services import deployments_of, fastapi, tabrank
from loadtest.targets.workspace import Workspace
from loadtest.workload.profiles import load_profile
from serve.contract.errors import TabrankError

SHIPPED = Path(__file__).parents[3] / "cluster.yaml"


@pytest.fixture
def work(tmp_path):
    return Workspace(tmp_path)


def changed(tmp_path, change):
    document = yaml.safe_load(SHIPPED.read_text())
    change(document["applications"][0])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "mine.yaml"


def arms(application):
    return application["deployments"][0]["user_config"]["experiment"]["arms"]


def test_only_addresses_shares_and_the_most_replicas_of_the_file_are_changed(work):
    service = tabrank(work, SHIPPED)
    shipped, used = (yaml.safe_load(path.read_text()) for path in (SHIPPED, work.path / "cluster.yaml"))
    application = used["applications"][0]
    assert application["args"].pop("store") == f"lmdb:{work.data.name}/store"
    assert application["args"].pop("models") == f"{work.data.name}/models"
    assert application["args"].pop("log") == "served"
    assert service.url == f"http://127.0.0.1:{used['http_options'].pop('port')}"
    for deployment in shipped["applications"][0]["deployments"]:
        if scaling := deployment.get("autoscaling_config"):
            scaling["max_replicas"] = scaling["min_replicas"]
    for key in ("store", "models", "log"):
        del shipped["applications"][0]["args"][key]
    del shipped["http_options"]["port"]
    assert used == shipped
    assert str(work.path / "cluster.yaml") in service.start


def test_the_model_arm_gets_all_viewers(work, tmp_path):
    def share(application):
        arms(application)["model"]["share"], arms(application)["popular"]["share"] = 0.1, 0.9

    tabrank(work, changed(tmp_path, share))
    used = yaml.safe_load((work.path / "cluster.yaml").read_text())["applications"][0]
    assert {name: arm["share"] for name, arm in arms(used).items()} == {"model": 1.0, "popular": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["args"].update(surface="ranklens"), "its surface is 'ranklens'"),
        (lambda a: a.update(import_path="other:app"), "exactly one application"),
        (lambda a: arms(a)["model"].update(scorer="noop"), "the scorer 'current'"),
    ],
)
def test_a_file_that_cannot_be_measured_is_refused(work, tmp_path, change, message):
    with pytest.raises(LoadtestError, match=message):
        tabrank(work, changed(tmp_path, change))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("a: [", "not valid YAML"), ("- a", "expected a mapping")]
)
def test_what_is_no_such_file_is_one_sentence(work, tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(TabrankError, match=message):
        tabrank(work, tmp_path / "mine.yaml")


def test_each_service_has_a_port_of_its_own_on_this_machine(work):
    services = [tabrank(work, SHIPPED), fastapi(work)]
    assert len({service.url for service in services}) == 2
    assert all(service.url.startswith("http://127.0.0.1:") for service in services)


@pytest.mark.integration
@pytest.mark.parametrize(
    "num_gpus",
    [pytest.param(0, marks=pytest.mark.proof, id="no gpu"), pytest.param(0.25, marks=pytest.mark.gpu)],
)
def test_two_scorers_of_the_torch_backend_share_a_gpu(bench_work, tmp_path, num_gpus):
    document = yaml.safe_load(SHIPPED.read_text())
    document["applications"][0]["args"]["backend"] = "torch"
    # A first batch of torch takes its time.
    deployments_of(document)["FeatureFetch"]["user_config"]["deadline_ms"] = 4_000
    scorer = deployments_of(document)["Scorer"]
    scorer["ray_actor_options"] |= {"num_gpus": num_gpus}
    scorer["autoscaling_config"] |= {"min_replicas": 2}
    document["nodes"]["head"] |= {"num_gpus": 1} if num_gpus else {}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    [body] = make_bodies(read_log_ids(bench_work.log, 55), load_profile("headline"), num=1)
    with bench_work.locked():
        service = tabrank(bench_work, tmp_path / "mine.yaml")
        target = Target.of(bench_work, service)
        with started(service, bench_work, body, 55):
            wanted = {"Scorer": 2, "FeatureFetch": 1, "Ingest": 1}
            assert within(60, lambda: target.at_full_strength(wanted)) is not None
            for _ in range(20):
                outcome, num_scored = read_answer(*ask(service.url, PATH, body), 55)
                assert (outcome.full, num_scored) == (True, 55)
