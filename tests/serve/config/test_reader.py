from pathlib import Path

import pytest

from serve.config.reader import read
from serve.config.settings import UserConfig
from serve.config.yaml_positions import Document
from serve.contract.errors import TabrankError
from serve.contract.typed_reader import levels

SHIPPED = Path(__file__).resolve().parents[3] / "cluster.yaml"

GOOD = """\
proxy_location: HeadOnly
http_options: {host: 127.0.0.1, port: 8123}
logging_config: {enable_access_log: false}
applications:
- name: tab
  route_prefix: /
  import_path: some.module:build
  deployments:
  - name: Front
    max_ongoing_requests: 40
    ray_actor_options: {num_cpus: 0.5}
    autoscaling_config: {min_replicas: 1, max_replicas: 2, target_ongoing_requests: 10, metrics_interval_s: 1}
    user_config: {whatever: 1}
nodes:
  head: {num_cpus: 2, min_nodes: 1, max_nodes: 1}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    path = written(folder, GOOD.replace(old, new))
    with pytest.raises(TabrankError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "\n" not in message
    return message.removeprefix(f"{path}:").strip()


def test_the_shipped_file_passes():
    config = read(SHIPPED)
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert [app["name"] for app in config.serve["applications"]] == ["spaces"]


def test_the_names_that_the_shipped_file_sets_are_frozen():
    application = read(SHIPPED).serve["applications"][0]
    assert sorted(application["args"]) == [
        "backend", "clock", "keep_log_days", "log", "models", "store", "surface",
        "surface_text",
    ]  # fmt: skip
    front, scorer, ingest = application["deployments"]
    assert (front["name"], scorer["name"], ingest["name"]) == ("FeatureFetch", "Scorer", "Ingest")
    assert sorted(front["user_config"]) == [
        "deadline_ms", "experiment", "kill_switch", "load_shedding", "log_features", "max_batch_candidates",
        "max_batches_in_flight", "stale_after_ms",
    ]  # fmt: skip
    assert sorted(front["user_config"]["experiment"]) == [
        "arms", "holdout", "name", "salt", "smallest_effect",
    ]  # fmt: skip


def test_all_replicas_at_their_maximum_fit_two_cores():
    deployments = read(SHIPPED).serve["applications"][0]["deployments"]
    shares = [
        d["ray_actor_options"]["num_cpus"] * d.get("autoscaling_config", {"max_replicas": 1})["max_replicas"]
        for d in deployments
    ]
    assert sum(shares) <= 2


def test_serve_gets_all_but_the_node_pools(tmp_path):
    config = read(written(tmp_path, GOOD))
    assert "nodes" not in config.serve
    assert config.serve["applications"][0]["deployments"][0]["user_config"] == {"whatever": 1}
    assert config.nodes["head"].num_cpus == 2
    assert config.port == 8123


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("proxy_location", "proxy_locatoin", "unknown key 'proxy_locatoin'; did you mean 'proxy_location'?"),
        ("port:", "prot:", "http_options.prot: unknown key 'prot'; did you mean 'port'?"),
        ("enable_access_log", "access_log", "logging_config.access_log: unknown key 'access_log'"),
        ("route_prefix", "route", "applications[0].route: unknown key 'route'; did you mean 'route_prefix'?"),
        ("user_config", "userconfig", "applications[0].deployments[0].userconfig: unknown key 'userconfig'"),
        (
            "num_cpus: 0.5",
            "num_cpu: 0.5",
            "ray_actor_options.num_cpu: unknown key 'num_cpu'; did you mean",
        ),
        (
            "max_replicas",
            "max_replica",
            "autoscaling_config.max_replica: unknown key 'max_replica'; did you",
        ),
        ("max_nodes", "max_node", "nodes.head.max_node: unknown key 'max_node'; did you mean 'max_nodes'?"),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_key(tmp_path, old, new, message):
    assert message in refusal(tmp_path, old, new)


@pytest.mark.parametrize(
    ("old", "new", "place", "given"),
    [
        ("8123", "eight", "http_options.port:", "'eight'"),
        ("HeadOnly", "Headonly", "proxy_location:", "'Headonly'"),
        ("max_replicas: 2", "max_replicas: two", "deployments[0].autoscaling_config.max_replicas:", "'two'"),
        ("min_replicas: 1", "min_replicas: -1", "deployments[0].autoscaling_config.min_replicas:", "-1"),
        ("{whatever: 1}", "7", "applications[0].deployments[0].user_config:", "7"),
        ("some.module:build", "build", "applications[0].import_path:", "'build'"),
        ("num_cpus: 2", "num_cpus: 1.5", "nodes.head.num_cpus:", "1.5"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(tmp_path, old, new, place, given):
    message = refusal(tmp_path, old, new)
    assert place in message
    assert given in message


def test_bounds_that_cross_are_refused(tmp_path):
    message = refusal(tmp_path, "min_replicas: 1", "min_replicas: 3")
    assert "autoscaling_config.max_replicas: max_replicas (2)" in message
    assert "nodes.head.min_nodes: min_nodes (2) is above max_nodes (1)" in refusal(
        tmp_path, "min_nodes: 1", "min_nodes: 2"
    )


def test_a_target_that_the_request_limit_hides_is_refused(tmp_path):
    message = refusal(tmp_path, "target_ongoing_requests: 10", "target_ongoing_requests: 40")
    assert "target_ongoing_requests (40) must be below max_ongoing_requests (40)" in message


def test_a_pool_without_a_size_is_refused(tmp_path):
    assert "nodes.head.min_nodes: the key 'min_nodes' is missing" in refusal(tmp_path, "min_nodes: 1, ", "")


def test_broken_yaml_is_refused_with_its_line(tmp_path):
    path = written(tmp_path, GOOD.replace("{whatever: 1}", "{whatever: 1"))
    with pytest.raises(TabrankError, match=r"cluster\.yaml:\d+:\d+: not valid YAML"):
        read(path)


@pytest.mark.parametrize("text", ["", "- 1\n", "applications"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(TabrankError, match="expected a mapping with the key 'applications'"):
        read(written(tmp_path, text))


def test_a_file_without_applications_is_refused(tmp_path):
    with pytest.raises(TabrankError, match="applications: the key 'applications' is missing"):
        read(written(tmp_path, "proxy_location: HeadOnly\n"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TabrankError, match=r"nowhere\.yaml: No such file"):
        read(tmp_path / "nowhere.yaml")


OURS = """\
applications:
- name: tab
  route_prefix: /
  import_path: serve.app:build
  args: {surface: spaces}
  deployments:
  - name: FeatureFetch
    user_config:
      experiment:
        name: launch
        salt: launch
        arms:
          model: {scorer: 20260101T000000Z-abcd, share: 1.0}
"""


def test_an_arm_of_an_artifact_that_is_not_published_is_refused(tmp_path):
    with pytest.raises(
        TabrankError, match=r"arms\.model\.scorer: version '20260101T000000Z-abcd' is not published"
    ):
        read(written(tmp_path, OURS))


def test_a_shadow_that_is_not_published_is_refused_without_such_an_arm(tmp_path):
    text = OURS.replace("20260101T000000Z-abcd", "current") + "      shadow: {version: V, share: 0.1}\n"
    with pytest.raises(TabrankError, match=r"shadow\.version: version '\S+' is not published"):
        read(written(tmp_path, text.replace("V", "20260101T000000Z-abcd")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "primary_metric: join_rate",
            "primary_metric: there is no metric 'join_rate'; it is called 'join_per_exposure'",
        ),
        (
            "primary_metric: joins",
            "primary_metric: there is no metric 'joins'; it is called 'join_per_viewer'",
        ),
        ("primary_metric: join", "primary_metric: there is no metric 'join'; it is called 'join_per_viewer'"),
        # The first stay of the surface.
        ("primary_metric: minutes", "there is no metric 'minutes'; it is called 'stay_per_viewer'"),
        ("primary_metric: likes", "unknown metric 'likes'"),
        ("primary_metric: likes", "an outcome of the surface gives NAME_per_viewer and NAME_per_exposure"),
        (
            "guardrails: {jion_per_viewer: 0.1}",
            "guardrails.jion_per_viewer: unknown metric 'jion_per_viewer'; did",
        ),
        ("guardrails: {join_per_viewer: 0}", "guardrails.join_per_viewer: 0 must be from 0.0001 to 0.99"),
    ],
)
def test_a_metric_that_the_surface_does_not_give_is_refused_with_the_name_that_is_meant(
    tmp_path, setting, message
):
    text = OURS.replace("20260101T000000Z-abcd", "current")
    with pytest.raises(TabrankError) as caught:
        read(written(tmp_path, f"{text}        {setting}\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("slate", "message"),
    [
        (
            [f"{{boost: {{where: {{candidate.topic: t{i}}}, by: 1}}}}" for i in range(33)],
            "slate: there are 33, and at most 32 are allowed",
        ),
        (
            [f"{{boost: {{where: {{candidate.topic: [{', '.join(f't{i}' for i in range(101))}]}}, by: 1}}}}"],
            "a list of up to 100 of them, a number within ±1e+38, or a range such as {min: 3}, {max: 5} or both",
        ),
    ],
)
def test_more_rules_or_words_than_a_ranking_has_time_for_are_refused(tmp_path, slate, message):
    text = OURS.replace(
        "20260101T000000Z-abcd, share: 1.0", f"current, share: 1.0, slate: [{', '.join(slate)}]"
    )
    with pytest.raises(TabrankError) as caught:
        read(written(tmp_path, text))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_second_application_of_a_surface_is_refused(tmp_path):
    shipped = SHIPPED.read_text()
    begin, end = shipped.index("- name: spaces"), shipped.index("\nnodes:") + 1
    twice = shipped[:end] + shipped[begin:end].replace("name: spaces", "name: again").replace(
        "_prefix: /", "_prefix: /2"
    )
    with pytest.raises(TabrankError, match="the surface 'spaces' already has an application"):
        read(written(tmp_path, twice + shipped[end:]))


def test_a_key_that_comes_twice_is_refused_with_its_line(tmp_path):
    text = OURS + "      experiment: {}\n"
    with pytest.raises(TabrankError, match=r"cluster\.yaml:14:7: .*the key 'experiment' comes twice"):
        read(written(tmp_path, text))


def test_the_keys_of_an_experiment_are_frozen():
    known = levels(UserConfig)
    assert known["experiment",] == [
        "name", "salt", "arms", "holdout", "start", "end", "primary_metric", "guardrails", "smallest_effect",
        "min_days", "min_exposures",
    ]  # fmt: skip
    assert known["experiment", "arms", "*"] == ["scorer", "share", "explore", "weights", "slate"]
    assert known["experiment", "arms", "*", "slate"] == ["boost", "spread", "limit"]
    assert known["api_keys", "*"] == ["sha256", "requests_per_s", "may_choose_arm"]
    assert known["shadow",] == ["version", "share"]
    assert known["guard",] == ["enabled", "watch_s", "max_psi", "max_slowdown", "max_failed"]
    assert "api_keys" in known[()]


def test_an_anchor_that_is_merged_and_overridden_is_no_repeated_key(tmp_path):
    text = GOOD.replace("{whatever: 1}", "{base: &b {k: 1}, deep: &d {<<: *b, k: 2}, other: {<<: *d}}")
    assert read(written(tmp_path, text)).port == 8123


MERGED = """\
base: &b {p: {q: 1}, t: {u: 2}}
more: &m {p: {s: 3}, w: 4}
deep: &d {<<: *b, t: 5}
here:
  <<: [*d, *m]
  p: {v: 6}
first: {<<: [*b, *m]}
"""


def test_places_are_those_of_own_keys_and_of_the_mapping_merged_first():
    document = Document(Path("cluster.yaml"), MERGED.encode())

    def place(path):
        found = document.finding(tuple(path.split(".")), "")
        return found.line, found.column

    assert (place("here.p.v"), place("here.w")) == ((6, 10), (2, 25))
    assert place("here.p.q") == place("here.p.s") == (6, 6), "the own `p` hides what was merged"
    assert place("here.t") == place("here.t.u") == (3, 22)
    assert (place("first.p.q"), place("first.p.s")) == ((1, 18), (1, 14))


def test_an_error_in_a_block_that_is_also_merged_has_the_path_of_the_block():
    text = b"x: {base: &b {at: {date: 2026-01-01}}, <<: *b}\ny: {<<: *b, at: 1}\n"
    (problem,) = Document(Path("cluster.yaml"), text).refusals
    assert (problem.line, problem.path) == (1, "x.base.at.date")


def test_a_template_that_was_not_rendered_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(TabrankError, match="not valid YAML"):
        read(written(tmp_path, GOOD.replace("port: 8123", "port: {{ PORT }}")))
