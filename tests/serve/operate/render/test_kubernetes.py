import functools
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.reader import read
from serve.stores.redis_client import PASSWORD

FOLDER = Path(__file__).parent
CLUSTER = FOLDER / "cluster.yaml"
FACTS = yaml.safe_load((FOLDER / "kuberay.facts.yaml").read_text())
OPTIONS = ("--image", "registry.example/tabrank:0.1", "--volume", "tabrank=/mnt/tabrank")
SPACES = FOLDER.parents[3] / "serve/surfaces/spaces.toml"
SCALARS = {"string": str, "integer": int, "boolean": bool}


@functools.cache
def rendered(*options, config=CLUSTER, code=0):
    # A wide terminal, so that no message is wrapped.
    done = CliRunner().invoke(app, ["render", "kubernetes", str(config), *options], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.stderr
    return done.stdout if code == 0 else done.stderr.strip()


def objects(*options, config=CLUSTER):
    service, policy = yaml.safe_load_all(rendered(*OPTIONS, *options, config=config))
    return service, policy


def written(folder, old, new):
    text = CLUSTER.read_text()
    assert old in text
    shutil.copy(SPACES, folder / "mine.toml")
    (folder / "cluster.yaml").write_text(text.replace(old, new))
    return folder / "cluster.yaml"


def check(value, fact, where):
    """Refuse a field outside the facts, as the API server prunes or refuses an unknown field."""
    if isinstance(fact, dict):
        assert isinstance(value, dict), where
        for key, child in value.items():
            assert key in fact, f"{where}.{key}: unknown field"
            check(child, fact[key], f"{where}.{key}")
    elif fact in SCALARS:
        assert type(value) is SCALARS[fact], f"{where}: {value!r} is not of type {fact}"
    elif fact == "{string}":
        assert all(type(item) is str for pair in value.items() for item in pair), where
    elif fact.startswith("["):
        for i, item in enumerate(value):
            check(item, fact[1:-1], f"{where}[{i}]")
    elif fact in FACTS:
        check(value, FACTS[fact], where)
    else:
        assert value in fact.split("|"), f"{where}: {value!r} is not one of {fact}"


def containers(service):
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


def test_the_text_is_the_golden_file():
    text = rendered(*OPTIONS).replace(version("ray"), "RAY")
    assert text == (FOLDER / "rayservice.golden.yaml").read_text(), (
        "render it again, and look at what changed"
    )


def test_kuberay_and_kubernetes_have_every_field():
    for rendered_object in objects():
        check(rendered_object, rendered_object["kind"], rendered_object["kind"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterConfig", "enableInTreeAutoscalling"), True),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "restartPolicy"), "never"),
    ],
)
def test_the_facts_refuse_a_misspelt_field_and_a_wrong_type(path, value):
    service = objects()[0]
    place = service
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(AssertionError):
        check(service, "RayService", "RayService")


def test_the_serve_part_is_the_file_without_its_pools():
    assert yaml.safe_load(objects()[0]["spec"]["serveConfigV2"]) == read(CLUSTER).serve


def test_host_and_proxies_are_those_of_pods_whatever_the_file_says(tmp_path):
    config = written(tmp_path, "host: 0.0.0.0 ", "host: 127.0.0.1 ")
    config.write_text(config.read_text().replace("EveryNode", "HeadOnly"))
    text = objects(config=config)[0]["spec"]["serveConfigV2"]
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
    for container in containers(objects()[0]):
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert (env["RAY_SERVE_ENABLE_HA_PROXY"], env["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("1", "1")
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_only_the_pool_with_gpus_asks_for_them():
    asked = [c["resources"]["limits"].get("nvidia.com/gpu") for c in containers(objects()[0])]
    assert asked == [None, None, "1"]


def test_no_pod_runs_as_root_or_may_become_it():
    service = objects()[0]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        context = group["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
    assert all(not c["securityContext"]["allowPrivilegeEscalation"] for c in containers(service))


def test_only_the_pods_reach_the_ports_of_ray_and_haproxy():
    service, policy = objects("--allow", "gateway", "--monitoring", "prometheus", "--operator", "kuberay")
    own = policy["spec"]["podSelector"]["matchLabels"]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert own.items() <= group["template"]["metadata"]["labels"].items()
    among, *rules = policy["spec"]["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": own}}]}
    opened = {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]:
              [p["port"] for p in rule["ports"]] for rule in rules for peer in rule["from"]}  # fmt: skip
    assert opened == {"gateway": [8000], "prometheus": [8080], "kuberay": [8265, 8000]}


def test_the_pods_set_the_password_variable_that_the_store_reads():
    for container in containers(objects()[0]):
        assert PASSWORD in [entry["name"] for entry in container["env"]]


def test_no_secret_is_written_and_each_is_named():
    text = rendered(*OPTIONS, "--token-secret", "my-token", "--redis-secret", "my-redis")
    service = yaml.safe_load(text.split("\n---\n")[0])
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token", "secretName": "my-token"}
    password = {
        "name": "TABRANK_REDIS_PASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "my-redis", "key": "password"}},
    }
    assert password in containers(service)[1]["env"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("redis://store", "redis://ann@store", "applications[0].args.store: has a user or a password"),
        ("redis://store", "redis://:hunter2@store", "set TABRANK_REDIS_PASSWORD in its environment"),
        ("redis://store.internal:6379/0", "lmdb:/mnt/tabrank/store", "store"),
        ("models: /mnt/tabrank/models", "models: var/models", "models"),
        ("surface: spaces", "surface: mine.toml", "surface: /home/tabrank/app/mine.toml would be lost"),
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
    text = text.replace("num_cpus: 8, min_nodes: 1, max_nodes: 4", "num_cpus: 2, min_nodes: 1, max_nodes: 1")
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
    ],
)
def test_names_that_kubernetes_does_not_accept_are_refused(options, message):
    refusal = rendered(*OPTIONS, *options, code=2)
    assert message in refusal
    assert "hunter2" not in refusal


@pytest.mark.parametrize(
    ("store", "address"),
    [
        ("redis://store.internal/0", "store.internal:6379"),
        ("rediss://store.internal:6380/0", "rediss://store.internal:6380"),
    ],
)
def test_ray_keeps_its_state_at_the_server_of_the_store(tmp_path, store, address):
    service = objects(config=written(tmp_path, "redis://store.internal:6379/0", store))[0]
    assert service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"] == address


def test_an_image_must_be_named():
    assert "Missing option '--image'" in rendered(code=2)


def test_a_head_alone_serves_and_keeps_its_one_writer(tmp_path):
    config = written(tmp_path, "redis://store.internal:6379/0", "lmdb:/mnt/tabrank/store")
    text = config.read_text().replace("backend: torch", "backend: onnx").replace(", num_gpus: 1}", "}")
    text = text.replace("min_replicas: 2, max_replicas: 8", "min_replicas: 1, max_replicas: 1")
    config.write_text(text[: text.index("  workers:")])
    service, policy = objects(config=config)
    cluster = service["spec"]["rayClusterConfig"]
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}
    assert not service["spec"]["excludeHeadPodFromServeSvc"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "4"
    assert cluster["workerGroupSpecs"] == []
    check(service, "RayService", "RayService")
    check(policy, "NetworkPolicy", "NetworkPolicy")
