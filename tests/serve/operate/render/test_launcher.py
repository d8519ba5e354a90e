import functools
import os
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.operate.host.environment import rendered_environment
from serve.operate.render.launcher import refuse_invalid
from serve.operate.render.pools import pools_of

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[3]
CLUSTER = FOLDER / "cluster.yaml"
IMAGE = ("--image", "registry.example/tabrank:0.1")
ALLOW = ("--allow", "203.0.113.0/24")
GOLDEN = {
    "aws": ("--machine-image", "ami-0123456789abcdef0", *IMAGE, *ALLOW),
    "gcp": ("--machine-image", "projects/p/global/images/family/gpu", "--project", "my-project", *ALLOW),
    "azure": ("--machine-image", "publisher:offer:sku:latest", *IMAGE),
}
LOCAL = ("--head-ip", "10.0.0.1", "--worker-ip", "10.0.0.2", "--worker-ip", "10.0.0.3")


@functools.cache
def rendered(provider, *options, config=CLUSTER, code=0):
    # A wide terminal, so that no message is wrapped.
    done = CliRunner().invoke(app, ["render", provider, str(config), *options], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.stderr
    return done.stdout if code == 0 else done.stderr.strip()


def one_pool(folder):
    """Write the cluster without GPUs, for machines of the user."""
    text = CLUSTER.read_text().replace("backend: torch", "backend: onnx").replace(", num_gpus: 1}", "}")
    (folder / "cluster.yaml").write_text(text[: text.index("  gpus:")])
    return folder / "cluster.yaml"


def one_proxy(folder):
    """Write the cluster with one proxy, for which a single machine has room."""
    (folder / "cluster.yaml").write_text(CLUSTER.read_text().replace("EveryNode ", "HeadOnly "))
    return folder / "cluster.yaml"


def plain(text):
    """Return the text without the parts that depend on the checkout."""
    text = text.replace(str(FOLDER), "FOLDER").replace(str(ROOT), "SOURCE")
    return text.replace(f"gcs/{version('ray')}", "gcs/RAY")


@pytest.mark.parametrize("provider", GOLDEN)
def test_the_text_is_the_golden_file(provider):
    text = plain(rendered(provider, *GOLDEN[provider]))
    golden = FOLDER / f"launcher.{provider}.golden.yaml"
    assert text == golden.read_text(), "render it again, and look at what changed"


@pytest.mark.parametrize(
    ("provider", "options", "made"), [("local", LOCAL, one_pool), ("fake", (), one_proxy)]
)
def test_the_text_for_machines_of_the_user_is_the_golden_file(provider, options, made, tmp_path):
    text = rendered(provider, *options, config=made(tmp_path)).replace(str(tmp_path), "FOLDER")
    assert plain(text) == (FOLDER / f"launcher.{provider}.golden.yaml").read_text()


def test_ray_itself_refuses_a_field_outside_its_schema():
    document = yaml.safe_load(rendered("aws", *GOLDEN["aws"]))
    refuse_invalid(document)
    document["available_node_types"]["head"]["max_wokers"] = 1
    with pytest.raises(TabrankError, match=r"Ray refuses the launcher file at available_node_types\.head"):
        refuse_invalid(document)


@pytest.mark.parametrize("provider", GOLDEN)
def test_every_pool_is_a_kind_of_machine_with_its_label_and_bounds(provider):
    document = yaml.safe_load(rendered(provider, *GOLDEN[provider]))
    kinds = {kind["labels"]["pool"]: kind for kind in document["available_node_types"].values()}
    pools = pools_of(read(CLUSTER))
    assert list(kinds) == ["head", *pools.workers]
    for name, pool in pools.workers.items():
        assert kinds[name]["resources"]["CPU"] == pool.num_cpus
        assert (kinds[name]["min_workers"], kinds[name]["max_workers"]) == (pool.min_nodes, pool.max_nodes)
    assert document["max_workers"] == 6
    assert kinds["head"]["max_workers"] == 0


def test_every_start_of_ray_has_the_fast_path_and_no_file_has_a_token():
    text = rendered("aws", *GOLDEN["aws"])
    document = yaml.safe_load(text)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = next(command for command in document[key] if "ray start" in command)
        exports = start[start.index("export ") : start.index("; ray start")]
        assert 'RAY_SERVE_ENABLE_HA_PROXY="1" ' in exports
        assert 'RAY_SERVE_THROUGHPUT_OPTIMIZED="1" ' in exports
        assert 'RAY_AUTH_MODE="token"' in exports
    assert "RAY_AUTH_TOKEN" not in text
    assert document["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert document["head_start_ray_commands"][-1].endswith("cluster.yaml")
    assert "serve deploy" in document["head_start_ray_commands"][-1]


def exported(document, who):
    (start,) = [command for command in document[f"{who}_start_ray_commands"] if "ray start" in command]
    words = shlex.split(re.search(r"export (.*); ray start", start)[1])
    return dict(word.split("=", 1) for word in words)


def test_the_head_keeps_its_state_on_disk_and_workers_wait_for_it():
    document = yaml.safe_load(rendered("aws", *GOLDEN["aws"]))
    head, worker = exported(document, "head"), exported(document, "worker")
    assert head["RAY_gcs_storage"] == "rocksdb"
    assert head["RAY_gcs_storage_path"].startswith("$HOME/tabrank/gcs/")
    assert int(worker["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= 600
    assert not set(worker) & {"RAY_gcs_storage", "RAY_gcs_storage_path"}
    # For a container it must lie outside, and belong to the login user.
    (volume,) = document["docker"]["head_run_options"]
    assert volume == "--volume $HOME/tabrank/gcs:/home/tabrank/tabrank/gcs"
    assert document["initialization_commands"][-1] == "mkdir -p $HOME/tabrank/gcs"


def test_a_head_alone_keeps_no_state(tmp_path):
    config = one_pool(tmp_path)
    text = config.read_text().replace("min_replicas: 2, max_replicas: 8", "min_replicas: 1, max_replicas: 1")
    config.write_text(text[: text.index("  workers:")])
    text = rendered("gcp", *GOLDEN["gcp"][2:4], *IMAGE, config=config)
    assert "gcs" not in text
    assert "Without its head" not in text


def test_the_effects_of_losing_the_head_are_noted(tmp_path):
    config = one_pool(tmp_path)
    text = rendered("gcp", "--project", "p", config=config)
    assert "Without its head the service goes on for 60 min" in text
    assert "num_cpus: 0 under nodes.head" in text
    assert "The only ingress ends" not in text
    text = config.read_text().replace("head: {num_cpus: 4", "head: {num_cpus: 0")
    config.write_text(text.replace("EveryNode ", "HeadOnly "))
    text = rendered("gcp", "--project", "p", "--instance", "head=e2-standard-2", config=config)
    assert "num_cpus: 0" not in text
    assert "The only ingress ends with it too: use proxy_location: EveryNode" in text


# With a container and without one.
@pytest.mark.parametrize("options", [GOLDEN["aws"], GOLDEN["aws"][:2]])
def test_a_shell_can_read_every_command(options):
    document = yaml.safe_load(rendered("aws", *options))
    commands = [
        command for key, commands in document.items() if key.endswith("_commands") for command in commands
    ]
    assert commands
    done = subprocess.run(
        ["bash", "-n"], input="\n".join(commands), text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_exports_each_setting_with_its_value():
    document = yaml.safe_load(rendered("aws", *GOLDEN["aws"]))
    (command,) = [command for command in document["worker_start_ray_commands"] if "export" in command]
    export = re.search("export .*(?=; ray start)", command)[0]
    done = subprocess.run(["bash", "-c", f"{export}; env -0"], capture_output=True, text=True, check=True)
    exported = dict(setting.split("=", 1) for setting in done.stdout.split("\0") if setting)
    expected = rendered_environment(os.path.expandvars("$HOME/tabrank"))
    assert {name: exported[name] for name in expected} == expected


def test_only_allowed_addresses_reach_the_service():
    closed = [option for option in GOLDEN["aws"] if option not in ALLOW]
    assert "IpPermissions" not in yaml.safe_load(rendered("aws", *closed))["provider"]["security_group"]
    (rule,) = yaml.safe_load(rendered("aws", *GOLDEN["aws"]))["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (8000, 8000)
    assert rule["IpRanges"] == [{"CidrIp": "203.0.113.0/24"}]


@pytest.mark.parametrize("provider", GOLDEN)
def test_every_file_names_the_ports_to_keep_closed(provider):
    text = rendered(provider, *GOLDEN[provider])
    head = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert all(port in head for port in ("8404", "9101", "8500", "8080", "30000"))
    assert "--dashboard-host=127.0.0.1" in text


def test_a_machine_is_the_smallest_that_fits_or_the_one_named():
    document = yaml.safe_load(rendered("aws", *GOLDEN["aws"], "--instance", "workers=c7i.2xlarge"))
    kinds = document["available_node_types"]
    names = {name: kind["node_config"]["InstanceType"] for name, kind in kinds.items()}
    assert names == {"head": "m7i.xlarge", "workers": "c7i.2xlarge", "gpus": "g6.2xlarge"}


@pytest.mark.parametrize(
    ("provider", "options", "message"),
    [
        ("asw", (), "Did you mean 'aws'?"),
        ("aws", (), "a pool has GPUs; name an image with their driver: --machine-image"),
        ("gcp", ("--machine-image", "x"), "Missing option '--project'"),
        ("azure", ("--machine-image", "x"), "PUBLISHER:OFFER:SKU:VERSION"),
        ("fake", (), "set HeadOnly for `render fake`"),
        ("local", (), "Missing option '--head-ip'"),
        ("fake", IMAGE, "No such option: --image"),
        ("local", LOCAL, "only one kind of worker is possible, not workers, gpus; keep one"),
        ("aws", ("--head-ip", "10.0.0.1"), "No such option: --head-ip"),
        (
            "aws",
            ("--allow", "everybody"),
            "'--allow': 'everybody' does not appear to be an IPv4 or IPv6 network",
        ),
        ("aws", ("--instance", "m7i.large"), "'--instance': m7i.large: an equals sign must join two values"),
        ("aws", ("--name", "My Cluster"), "'--name': My Cluster: use up to 40 lower-case letters"),
        ("aws", (*GOLDEN["aws"], "--instance", "wokers=x"), "--instance wokers: `nodes` has no such pool"),
        ("aws", ("--instance", "head=a", "--instance", "head=b"), "head appears twice"),
    ],
)
def test_options_that_a_provider_cannot_use_are_refused(provider, options, message):
    assert message in rendered(provider, *options, code=2)


def test_aws_needs_an_image_with_a_command_to_find_it_and_others_have_one(tmp_path):
    config = one_pool(tmp_path)
    assert "aws ssm get-parameter --region eu-west-1" in rendered(
        "aws", "--region", "eu-west-1", config=config, code=2
    )
    assert "ubuntu-2404-lts-amd64" in rendered("gcp", "--project", "p", config=config)
    assert "ubuntu-24_04-lts" in rendered("azure", config=config)


def test_a_pool_larger_than_any_machine_needs_a_type(tmp_path):
    config = one_pool(tmp_path)
    config.write_text(config.read_text().replace("workers: {num_cpus: 8", "workers: {num_cpus: 500"))
    message = rendered("aws", *GOLDEN["aws"], config=config, code=2)
    assert "nodes.workers: no machine in our table has 500 CPUs" in message
    assert "--instance workers=TYPE" in message


def test_allowed_callers_of_an_unreachable_service_are_refused(tmp_path):
    config = one_pool(tmp_path)
    config.write_text(config.read_text().replace("host: 0.0.0.0", "host: 127.0.0.1"))
    assert "http_options.host is 127.0.0.1" in rendered("aws", *GOLDEN["aws"], config=config, code=2)


def test_a_service_that_only_its_machines_can_reach_is_reported(tmp_path, capfd):
    config = one_pool(tmp_path)
    config.write_text(config.read_text().replace("host: 0.0.0.0", "host: 127.0.0.1"))
    options = (*GOLDEN["gcp"][2:4], "--out", str(tmp_path / "up.yaml"))
    done = CliRunner().invoke(app, ["render", "gcp", str(config), *options])
    assert "warning: " in done.stderr
    assert "http_options.host is 127.0.0.1" in done.stderr


def test_the_text_is_written_to_the_file_of_out(tmp_path):
    out = tmp_path / "launcher.yaml"
    assert rendered("fake", "--out", str(out), config=one_proxy(tmp_path)) == ""
    assert yaml.safe_load(out.read_text())["provider"]["type"] == "external"


def test_a_machine_with_a_gpu_stays_where_it_is_on_gcp():
    kinds = yaml.safe_load(rendered("gcp", *GOLDEN["gcp"]))["available_node_types"]
    fixed = [name for name, kind in kinds.items() if "scheduling" in kind["node_config"]]
    assert fixed == ["gpus"]


def test_more_workers_than_machines_are_refused(tmp_path):
    config = one_pool(tmp_path)
    message = rendered("local", "--head-ip", "10.0.0.1", config=config, code=2)
    assert "nodes.workers needs 1 or more machines, but --worker-ip names 0; add some" in message
