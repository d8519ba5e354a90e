import functools
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.reader import read
from serve.operate.render.companions import RULES
from serve.stores.redis_client import PASSWORD
from tests.serve.operate.render.strict_schemas import validate

FOLDER = Path(__file__).parent
CLUSTER = FOLDER / "cluster.yaml"
OPTIONS = ("--image", "registry.example/tabrank:0.1", "--volume", "tabrank=/mnt/tabrank")
SPACES = FOLDER.parents[3] / "serve/surfaces/spaces.toml"
GUIDE = FOLDER.parents[3] / "docs/kubernetes.md"
# What a cluster's review asks for, with each option of it.
REVIEWED = (
    *OPTIONS, "--host", "rank.example.com", "--allow", "ingress-nginx", "--balancer", "35.191.0.0/16",
)  # fmt: skip


@functools.cache
def rendered(*options, config=CLUSTER, code=0):
    # A wide terminal, so that no message is wrapped.
    done = CliRunner().invoke(app, ["render", "kubernetes", str(config), *options], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.stderr
    return done.stdout if code == 0 else done.stderr.strip()


def objects(*options, config=CLUSTER):
    return list(yaml.safe_load_all(rendered(*OPTIONS, *options, config=config)))


def of_kind(kind, *options, config=CLUSTER):
    return [one for one in objects(*options, config=config) if one["kind"] == kind]


def service_of(*options, config=CLUSTER):
    (service,) = of_kind("RayService", *options, config=config)
    return service


def pods(service):
    """Return the templates of the pods, by the name of their pool."""
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return {group["labels"]["pool"]: group["template"] for group in groups}


def written(folder, old, new):
    text = CLUSTER.read_text()
    assert old in text
    shutil.copy(SPACES, folder / "mine.toml")
    (folder / "cluster.yaml").write_text(text.replace(old, new))
    return folder / "cluster.yaml"


def containers(service):
    return [pod["spec"]["containers"][0] for pod in pods(service).values()]


def head_alone(folder, store="lmdb:/mnt/tabrank/store"):
    """Write a file of one pod, whose store is embedded."""
    config = written(folder, "redis://store.internal:6379/0", store)
    text = config.read_text().replace("backend: torch", "backend: onnx").replace(", num_gpus: 1}", "}")
    text = text.replace("min_replicas: 2, max_replicas: 8", "min_replicas: 1, max_replicas: 1")
    config.write_text(text[: text.index("  workers:")])
    return config


def test_the_text_is_the_golden_file():
    text = rendered(*REVIEWED).replace(version("ray"), "RAY")
    rules = text.index("  groups:\n")
    assert text[:rules] == (FOLDER / "rayservice.golden.yaml").read_text(), (
        "render it again, and look at what changed"
    )


@pytest.mark.parametrize("options", [OPTIONS, REVIEWED, (*OPTIONS, "--redis", "state.internal:6379")])
def test_the_api_servers_take_every_object_and_field(options):
    for one in yaml.safe_load_all(rendered(*options)):
        validate(one)


def test_the_api_servers_take_the_objects_of_a_head_alone(tmp_path):
    for one in objects(config=head_alone(tmp_path, "lmdb:var/store")):
        validate(one)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayService", ("spec", "rayClusterConfig", "enableInTreeAutoscalling"), True),
        ("RayService", ("spec", "rayClusterConfig", "networkPolicy", "mode"), "DenyNone"),
        ("RayService", ("spec", "rayClusterConfig", "networkPolicy", "head", "ingress"), []),
        ("RayService", ("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("RayService", ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "tolerance"), []),
        ("PodDisruptionBudget", ("spec", "minAvaliable"), 1),
        ("Ingress", ("spec", "rules", 0, "http", "paths", 0, "pathtype"), "Prefix"),
        ("StatefulSet", ("spec", "template", "spec", "containers", 0, "resource"), {}),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "intervall"), "15s"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), 1),
    ],
)
def test_the_schemas_refuse_a_misspelt_field_and_a_wrong_type(kind, path, value):
    (one,) = of_kind(kind, *REVIEWED[len(OPTIONS) :])
    place = one
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(one)


def test_the_serve_part_is_the_file_without_its_pools():
    assert yaml.safe_load(service_of()["spec"]["serveConfigV2"]) == read(CLUSTER).serve


def test_host_and_proxies_are_those_of_pods_whatever_the_file_says(tmp_path):
    config = written(tmp_path, "host: 0.0.0.0 ", "host: 127.0.0.1 ")
    config.write_text(config.read_text().replace("EveryNode", "HeadOnly"))
    text = service_of(config=config)["spec"]["serveConfigV2"]
    assert yaml.safe_load(text) == read(CLUSTER).serve


def test_a_service_without_keys_is_not_rendered_for_pods(tmp_path):
    config = written(tmp_path, "host: 0.0.0.0 ", "host: 127.0.0.1 ")
    text = config.read_text()
    keys = text[text.index("      api_keys:") : text.index("  - name: Scorer")]
    config.write_text(text.replace(keys, ""))
    message = rendered(*OPTIONS, config=config, code=2)
    assert "user_config.api_keys is missing" in message
    assert "python -m serve key" in message


def test_every_container_has_the_fast_path_and_equal_requests_and_limits():
    for container in containers(service_of()):
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert (env["RAY_SERVE_ENABLE_HA_PROXY"], env["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("1", "1")
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_only_the_pool_with_gpus_asks_for_them():
    asked = [c["resources"]["limits"].get("nvidia.com/gpu") for c in containers(service_of())]
    assert asked == [None, None, "1"]


def test_no_pod_runs_as_root_or_may_become_it():
    (redis,) = of_kind("StatefulSet")
    for pod in (*pods(service_of()).values(), redis["spec"]["template"]):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert not pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def test_every_container_has_limits_of_cpu_memory_and_local_disk():
    (redis,) = of_kind("StatefulSet")
    service = service_of()
    autoscaler = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    for one in (*containers(service), *redis["spec"]["template"]["spec"]["containers"], autoscaler):
        assert one["resources"]["requests"] == one["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(one["resources"]["limits"])
    assert {one["resources"]["limits"]["ephemeral-storage"] for one in containers(service)} == {"20Gi"}


def opened(rules):
    """Return the ports that rules open, by namespace or range of addresses."""
    found = {}
    for rule in rules["ingressRules"]:
        for peer in rule["from"]:
            selector = peer.get("namespaceSelector")
            who = (
                selector["matchLabels"]["kubernetes.io/metadata.name"]
                if selector
                else peer["ipBlock"]["cidr"]
            )
            found[who] = [port["port"] for port in rule["ports"]]
    return found


def test_only_pods_reach_the_ports_of_ray_and_load_balancers_that_of_the_service():
    service = service_of(
        "--allow",
        "gateway",
        "--monitoring",
        "prometheus",
        "--operator",
        "kuberay",
        "--balancer",
        "10.9.0.0/16",
    )
    policy = service["spec"]["rayClusterConfig"]["networkPolicy"]
    assert policy["mode"] == "DenyAllIngress"
    assert opened(policy["head"]) == {"prometheus": [8080], "kuberay": [8265, 8000]}
    assert opened(policy["worker"]) == {"prometheus": [8080], "gateway": [8000], "10.9.0.0/16": [8000]}


def test_callers_reach_a_head_that_serves(tmp_path):
    service = service_of(config=head_alone(tmp_path))
    head = service["spec"]["rayClusterConfig"]["networkPolicy"]["head"]
    assert opened(head) == {"monitoring": [8080], "kuberay-system": [8265, 8000], "tabrank": [8000]}


def test_a_drain_of_nodes_evicts_one_pod_of_a_pool_at_a_time(tmp_path):
    (budget,) = of_kind("PodDisruptionBudget")
    assert budget["metadata"]["name"] == "tabrank-workers"
    # Without a subresource `scale`, only a whole number of pods that stay is obeyed.
    assert budget["spec"]["minAvailable"] == 1
    pod = pods(service_of())["workers"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    one = written(tmp_path, "num_cpus: 8, min_nodes: 2", "num_cpus: 8, min_nodes: 1")
    assert of_kind("PodDisruptionBudget", config=one) == []
    assert "The pool workers may have one pod" in rendered(*OPTIONS, config=one)


def test_only_the_autoscaler_beside_the_head_speaks_with_kubernetes():
    tokens = [pod["spec"]["automountServiceAccountToken"] for pod in pods(service_of()).values()]
    assert tokens == [True, False, False]


def test_the_pods_of_a_pool_spread_over_nodes_and_zones():
    for pool, pod in pods(service_of()).items():
        spread = pod["spec"]["topologySpreadConstraints"]
        assert [one["topologyKey"] for one in spread] == [
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        ]
        for one in spread:
            assert one["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
            assert one["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == pool


def test_the_pods_of_a_pool_go_where_its_labels_and_taints_are():
    places = {name: pod["spec"] for name, pod in pods(service_of()).items()}
    assert places["gpus"]["nodeSelector"] == {"accelerator": "l4"}
    assert places["gpus"]["tolerations"] == [
        {"operator": "Equal", "key": "dedicated", "value": "ranking", "effect": "NoSchedule"},
        {"operator": "Exists", "key": "nvidia.com/gpu", "effect": "NoSchedule"},
    ]
    assert "nodeSelector" not in places["workers"]
    assert "tolerations" not in places["workers"]


def test_a_pod_leaves_in_the_time_that_replicas_and_proxies_take():
    worker = pods(service_of())["workers"]["spec"]
    *shell, drain_s, unrouted_s = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert shell[:2] == ["bash", "-c"]
    env = {one["name"]: one.get("value") for one in worker["containers"][0]["env"]}
    proxies = ("RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S", "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S")
    # FeatureFetch may take 40 s to stop, and its replacement 60 s to start.
    assert int(drain_s) == 60 + 40
    stops_s = int(unrouted_s) + int(drain_s) + sum(int(env[name]) for name in proxies)
    assert worker["terminationGracePeriodSeconds"] == stops_s


def test_the_drain_asks_ray_to_move_the_replicas_of_its_own_node(tmp_path):
    command = containers(service_of())[1]["lifecycle"]["preStop"]["exec"]["command"]
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    ray.chmod(0o755)
    # Ray's raylet has this argument.
    raylet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--node_id=feed"])
    try:
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run([*command[:-2], "2", "0"], env={"PATH": path}, check=True, timeout=30)
    finally:
        raylet.kill()
        raylet.wait()
    asked = (tmp_path / "asked").read_text()
    # Another cluster may run on the machine of the tests.
    assert re.match(r"drain-node --node-id [0-9a-f]+ --reason DRAIN_NODE_REASON_PREEMPTION ", asked)
    assert asked.endswith("--deadline-remaining-seconds 2\n")


def test_a_head_that_serves_answers_until_nothing_new_comes_in(tmp_path):
    (container,) = containers(service_of(config=head_alone(tmp_path)))
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]


def test_prometheus_scrapes_every_pod_as_the_job_of_our_rules():
    (monitor,) = of_kind("PodMonitor")
    for pod in pods(service_of()).values():
        labels = pod["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels[monitor["spec"]["jobLabel"]] == "tabrank"
    (page,) = monitor["spec"]["podMetricsEndpoints"]
    for container in containers(service_of()):
        assert {"name": page["port"], "containerPort": 8080} in container["ports"]


def test_prometheus_gets_our_own_rules_and_alerts():
    (rule,) = of_kind("PrometheusRule")
    ours = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    assert rule["spec"]["groups"] == ours


def test_an_ingress_ends_tls_before_the_service():
    assert of_kind("Ingress") == []
    (ingress,) = of_kind("Ingress", "--host", "rank.example.com")
    assert ingress["spec"]["tls"] == [{"hosts": ["rank.example.com"], "secretName": "tabrank-tls"}]
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "rank.example.com"
    service = {"name": "tabrank-serve-svc", "port": {"number": 8000}}
    assert rule["http"]["paths"][0]["backend"] == {"service": service}


def in_a_bucket(config):
    """Move models and log of a file into a bucket."""
    config.write_text(config.read_text().replace("/mnt/tabrank/", "s3://bucket/"))
    return config


def test_a_bucket_needs_no_volume(tmp_path):
    config = in_a_bucket(written(tmp_path, "backend: torch", "backend: torch"))
    text = rendered("--image", "image", config=config)
    assert "volumes: []" in text
    assert "persistentVolumeClaim:" not in text
    assert "emptyDir" not in text


@pytest.mark.parametrize(
    ("folder", "full"), [("/mnt/store", "/mnt/store"), ("var/store", "/home/tabrank/app/var/store")]
)
def test_an_embedded_store_without_a_volume_gets_a_persistent_one(tmp_path, folder, full):
    config = in_a_bucket(head_alone(tmp_path, f"lmdb:{folder}"))
    every = list(yaml.safe_load_all(rendered("--image", "image", config=config)))
    (claim,) = [one for one in every if one["kind"] == "PersistentVolumeClaim"]
    name = claim["metadata"]["name"]
    (service,) = [one for one in every if one["kind"] == "RayService"]
    head = pods(service)["head"]["spec"]
    assert head["volumes"] == [{"name": name, "persistentVolumeClaim": {"claimName": name}}]
    assert head["containers"][0]["volumeMounts"] == [{"name": name, "mountPath": full}]


def test_an_embedded_store_in_a_named_volume_gets_no_other(tmp_path):
    config = in_a_bucket(head_alone(tmp_path, "lmdb:/mnt/store/lmdb"))
    text = rendered("--image", "image", "--volume", "fast=/mnt/store", config=config)
    assert "claimName: fast" in text
    assert "kind: PersistentVolumeClaim" not in text


def test_the_pods_set_the_password_variable_that_the_store_reads():
    for container in containers(service_of()):
        assert PASSWORD in [entry["name"] for entry in container["env"]]


def test_no_secret_is_written_and_each_is_named():
    service = service_of("--name", "mine")
    token = {"mode": "token", "secretName": "mine-ray-token"}
    assert service["spec"]["rayClusterConfig"]["authOptions"] == token
    password = {
        "name": "TABRANK_REDIS_PASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "mine-redis", "key": "password"}},
    }
    assert password in containers(service)[1]["env"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("redis://store", "redis://ann@store", "applications[0].args.store: has a user or a password"),
        ("redis://store", "redis://:hunter2@store", "set TABRANK_REDIS_PASSWORD in its environment"),
        ("redis://store.internal:6379/0", "lmdb:/mnt/tabrank/store", "is a file on one machine"),
        ("dedicated=ranking:NoSchedule", "dedicated", "'dedicated' must be KEY:EFFECT or KEY=VALUE:EFFECT"),
        ("models: /mnt/tabrank/models", "models: var/models", "models"),
        ("log: /mnt/tabrank/log", "log: /var/log/tabrank", "--volume CLAIM=/var/log"),
        ("max_replicas: 2,", "max_replicas: 3,", "all replicas need 3 num_gpus, and the worker pools have 2"),
        ("  head:", "  first:", "nodes: the pool 'head' is missing"),
        ("  gpus:", "  GPUs:", "a pool's name has up to 40 lower-case letters")])  # fmt: skip
def test_a_file_that_pods_cannot_serve_is_refused(tmp_path, old, new, message):
    refusal = rendered(*OPTIONS, config=written(tmp_path, old, new), code=2)
    assert message in refusal
    assert "hunter2" not in refusal


def test_options_that_the_file_leaves_out_count_with_rays_defaults(tmp_path):
    # Ray's default is 1.
    config = written(tmp_path, "{num_cpus: 2}", "{num_cpus: null}")
    assert objects(config=config)
    text = config.read_text().replace("max_replicas: 8", 'max_replicas: "8"')
    text = text.replace("num_cpus: 8, min_nodes: 2, max_nodes: 4", "num_cpus: 2, min_nodes: 1, max_nodes: 1")
    config.write_text(text.replace("num_cpus: 8, num_gpus: 1", "num_cpus: 2, num_gpus: 1"))
    assert "all replicas need 10.5 num_cpus" in rendered(*OPTIONS, config=config, code=2)


def test_the_byte_order_mark_of_an_editor_changes_nothing(tmp_path):
    config = tmp_path / "cluster.yaml"
    config.write_bytes(b"\xef\xbb\xbf" + CLUSTER.read_bytes())
    assert objects(config=config) == objects()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--volume", "Models=/mnt/models"),
            "'--volume': Models: Kubernetes takes up to 63 lower-case letters",
        ),
        (("--volume", "tabrank=/mnt/other"), "tabrank appears twice"),
        (("--volume", "models"), "'--volume': models: must be CLAIM=FOLDER"),
        (("--name", "My Cluster"), "'--name': My Cluster: use up to 40 lower-case letters"),
        (("--machine-image", "AMI"), "No such option: --machine-image"),
        (("--namespace", "My Space"), "'--namespace': My Space: Kubernetes takes"),
        (("--allow", "everybody!"), "'--allow': everybody!: Kubernetes takes"),
        (("--redis", "ann:hunter2@store:6379"), "'--redis': must be HOST:PORT"),
        (("--redis", "store"), "'--redis': must be HOST:PORT"),
        (("--redis", "store.internal:6379"), "--redis store.internal:6379 is the store's server"),
        (("--balancer", "35.191.0.1/16"), "'--balancer': 35.191.0.1/16 has host bits set"),
    ],
)
def test_names_that_kubernetes_does_not_accept_are_refused(options, message):
    refusal = rendered(*OPTIONS, *options, code=2)
    assert message in refusal
    assert "hunter2" not in refusal


def test_ray_keeps_its_state_in_a_redis_apart_from_the_store_s():
    (redis,) = of_kind("Service")
    address = f"{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    state = service_of()["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert state["redisAddress"] == address == "tabrank-ray-redis:6379"
    (server,) = of_kind("StatefulSet")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "PASSWORD", **state["redisPassword"]}]
    assert "yes" in container["args"], "a restart must find the state again"
    assert server["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "data"


def test_only_the_pods_of_the_service_reach_the_redis_of_ray():
    (policy,) = of_kind("NetworkPolicy")
    (server,) = of_kind("StatefulSet")
    labels = server["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    (rule,) = policy["spec"]["ingress"]
    for pod in pods(service_of()).values():
        allowed = rule["from"][0]["podSelector"]["matchLabels"].items()
        assert allowed <= pod["metadata"]["labels"].items()
        assert not labels.items() <= pod["metadata"]["labels"].items()


def test_a_redis_of_your_own_keeps_ray_s_state():
    options = "--redis", "rediss://state.internal:6380"
    state = service_of(*options)["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert state["redisAddress"] == "rediss://state.internal:6380"
    assert of_kind("StatefulSet", *options) == of_kind("Service", *options) == []


def test_an_image_must_be_named():
    assert "Missing option '--image'" in rendered(code=2)


def test_a_head_alone_serves_and_keeps_its_one_writer(tmp_path):
    service = service_of(config=head_alone(tmp_path))
    cluster = service["spec"]["rayClusterConfig"]
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}
    assert not service["spec"]["excludeHeadPodFromServeSvc"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "4"
    assert cluster["workerGroupSpecs"] == []
    assert of_kind("StatefulSet", config=head_alone(tmp_path)) == []
