"""ops/ and its services in compose.yaml against the metrics and each other. Static checks: nothing is started."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config_file import parse
from engine.metrics.registry import METRICS
from functions import samples
from tests.unit.promql import PromQLError, Value, check

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((OPS / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((OPS / "grafana/dashboards/headrace.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target


def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return loaded


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_is_about_metrics_that_exist(alert: dict[str, Any]) -> None:
    """Its expression reads, and its texts name only labels that the expression leaves."""
    value = check(alert["expr"])
    assert value.sort == "vector"
    for text in alert["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= value.labels


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """It has a severity, a time, and the remedy of a metric that it is about, word for word."""
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+[smh]", alert["for"])
    assert set(alert["annotations"]) == {"summary", "description", "remedy"}
    about = _named(alert["expr"])
    if about != {"up"}:
        assert alert["annotations"]["remedy"] in {metric.remedy for metric in METRICS if about & {*metric.series}}


def test_alerts_have_names_of_their_own() -> None:
    """No two alerts share a name, and the troubles that a page must tell of are all there."""
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    named = set().union(*(_named(alert["expr"]) for alert in alerts()))
    assert named >= {
        *("up", "headrace_offset_lag", "headrace_iterator_age_seconds", "headrace_shard_stalled_seconds"),
        *("headrace_shard_stopped", "headrace_records_total", "headrace_function_errors_total"),
        *("headrace_commit_duration_seconds_bucket", "headrace_loop_blocks_total", "headrace_budget_held_bytes"),
    }


@pytest.mark.parametrize(("title", "target"), list(targets()))
def test_a_panel_is_about_metrics_that_exist(title: str, target: dict[str, Any]) -> None:
    """Its expression reads, and its legend names only labels that the expression leaves."""
    value = check(target["expr"])
    assert value.sort == "vector", title
    assert set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"])) <= value.labels


def test_the_dashboards_variables_are_labels() -> None:
    """Each variable asks a metric for a label that it has, and expressions use no other variable."""
    variables = {each["name"]: each["query"]["query"] for each in dashboard()["templating"]["list"]}
    for query in variables.values():
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert match is not None
        assert match[2] in check(match[1]).labels
    used = {name for _, target in targets() for name in re.findall(r"\$\{?(\w+)", target["expr"])}
    assert {name for name in used if not name.startswith("__")} <= set(variables)


def test_the_dashboards_panels_do_not_overlap() -> None:
    """Ids and places are each used once, within 24 columns, and every panel says what it shows."""
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels())


def test_the_dashboard_reads_the_datasource_that_is_provisioned() -> None:
    """Panels, targets and variables name the provisioned datasource, whose address is the Prometheus service."""
    provisioned = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    named = [panel["datasource"] for panel in panels()]
    named += [target["datasource"] for _, target in targets()]
    named += [each["datasource"] for each in dashboard()["templating"]["list"]]
    assert all(each == {"type": source["type"], "uid": source["uid"]} for each in named)
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services()


def test_most_metrics_are_shown() -> None:
    """Alerts and dashboard together leave out only what is there to be joined with or to be looked up."""
    shown = set().union(*(check(alert["expr"]).metrics for alert in alerts()))
    shown = shown.union(*(check(target["expr"]).metrics for _, target in targets()))
    missing = {metric.name for metric in METRICS} - shown
    assert missing == {
        *("headrace_build_info", "headrace_pipeline_info", "headrace_pipeline_state", "headrace_shard_end"),
        *("headrace_shard_iterator_age_seconds", "headrace_shard_held_bytes"),
        *("headrace_loop_blocked_longest_seconds", "headrace_function_billed_seconds_total"),
    }


def test_prometheus_scrapes_the_service_that_runs() -> None:
    """Target, token and rule files are those that compose.yaml gives to Prometheus and to the pipeline."""
    scraped = yaml.safe_load((OPS / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["job_name"] == "headrace"
    assert job["metrics_path"] == "/metrics"
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services()
    web = parse(tomllib.loads((OPS / "headrace.toml").read_text())).web
    assert (web.host, str(web.port)) == ("0.0.0.0", port)
    assert host in web.names
    mounts = _mounts("prometheus")
    for path in (*scraped["rule_files"], "/etc/prometheus/prometheus.yml"):
        assert (ROOT / mounts[path]).is_file()
    assert Path(job["authorization"]["credentials_file"]).parent == Path("/run/headrace")
    assert mounts["/run/headrace"] == _mounts(host)["/run/headrace"] == _mounts("token")["/run/headrace"]


def test_files_that_are_mounted_are_there() -> None:
    """Every bind mount of compose.yaml is a path of this repository; every named volume is declared."""
    volumes = yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    for name in services():
        for source in _mounts(name).values():
            assert (ROOT / source).exists() if source.startswith("./") else source in volumes


def test_grafana_finds_what_is_provisioned() -> None:
    """The dashboards' folder of the provider is mounted, and holds the dashboard."""
    provider = yaml.safe_load((OPS / "grafana/provisioning/dashboards/headrace.yml").read_text())
    mounts = _mounts("grafana")
    (path,) = [each["options"]["path"] for each in provider["providers"]]
    assert (ROOT / mounts[path] / "headrace.json").is_file()
    assert (ROOT / mounts["/etc/grafana/provisioning"] / "datasources").is_dir()


def test_nothing_is_published_beyond_this_machine() -> None:
    """Every published port is bound to loopback, and every image that is not built has a whole version."""
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_the_traffic_is_a_sample_that_the_pipeline_reads() -> None:
    """The file that is sent is in the image, and its topic is the pipeline's and none of the demo's."""
    command = services()["traffic"]["command"]
    (pipeline,) = parse(tomllib.loads((OPS / "headrace.toml").read_text())).pipelines.values()
    assert command[:2] == ["produce", pipeline.source.topic]
    assert not pipeline.source.topic.startswith("demo.")
    workdir = re.search(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir is not None
    assert ROOT / Path(command[2]).relative_to(workdir[1]) == samples.path("msnbc-page-views")


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("headrace_offset_lags", "no metric"),
        ("headrace_commit_duration_seconds", "no metric"),
        ("rate(headrace_polled_records[5m])", "no metric"),
        ('headrace_offset_lag{partition="0"}', "no label 'partition'"),
        ("sum by (function) (headrace_offset_lag)", "no label 'function'"),
        ('headrace_records_total{outcome="fialed"}', "is never 'fialed'"),
        ('headrace_shards{state=~"starting|runing"}', "is never 'runing'"),
        ("rate(headrace_offset_lag[5m])", "is a gauge"),
        ("deriv(headrace_rows_total[5m])", "is a counter"),
        ("rate(headrace_rows_total)", "takes a range"),
        ("rate(sum(headrace_rows_total)[5m:1m])", "comes before"),
        ("histogram_quantile(0.9, rate(headrace_commit_duration_seconds_sum[5m]))", "takes buckets"),
        ("histogram_quantile(0.9, headrace_commit_duration_seconds_bucket)", "take the buckets' rate"),
        (
            "histogram_quantile(0.9, sum by (sink) (rate(headrace_commit_duration_seconds_bucket[5m])))",
            "takes buckets",
        ),
        (
            "histogram_quantile(0.9, max by (le) (rate(headrace_commit_duration_seconds_bucket[5m])))",
            "takes buckets",
        ),
        ("headrace_offset_lag / headrace_shard_held_bytes", "never matches"),
        ("headrace_offset_lag and sum by (pipeline) (headrace_offset_lag)", "never matches"),
        ("headrace_offset_lag > ", "ends too early"),
        ("sum(headrace_offset_lag))", "one too many"),
        ("headrace_offset_lag[5m", "ends too early"),
        ("frobnicate(headrace_offset_lag)", "not known"),
        ("headrace_offset_lag and 1", "between vectors"),
        ("headrace_offset_lag @ 5", "cannot read"),
    ],
)
def test_what_is_wrong_is_found(expression: str, wrong: str) -> None:
    """The reader of expressions refuses names, labels, values, types and syntax that cannot be right."""
    with pytest.raises(PromQLError, match=wrong):
        check(expression)


@pytest.mark.parametrize(
    ("expression", "labels"),
    [
        ("sum(headrace_offset_lag)", set()),
        ("sum without (instance, job) (headrace_offset_lag)", {"pipeline"}),
        ("headrace_offset_lag * on (pipeline) group_left (topic) headrace_pipeline_info", None),
        ("max_over_time(headrace_offset_lag[1h])", {"pipeline", "job", "instance"}),
        ("1 - -headrace_offset_lag ^ 2 >= bool 3", {"pipeline", "job", "instance"}),
        ("max_over_time(sum by (pipeline) (headrace_offset_lag)[1h:1m])", {"pipeline"}),
    ],
)
def test_what_is_right_is_read(expression: str, labels: set[str] | None) -> None:
    """Labels are followed through operators, aggregations, functions and subqueries."""
    expected = {"pipeline", "job", "instance", "topic"} if labels is None else labels
    assert check(expression) == Value("vector", frozenset(expected), "", check(expression).metrics)


def _named(expression: str) -> set[str]:
    known = {"up", *(name for metric in METRICS for name in metric.series)}
    return known & set(re.findall(r"\w+", expression))


def _mounts(name: str) -> dict[str, str]:
    """Sources of the volumes of a service, by the path inside of it."""
    pairs = [volume.split(":")[:2] for volume in services()[name].get("volumes", ())]
    return {inside: source for source, inside in pairs}
