"""What an operator sees: dashboard and alert rules ask for what a running API tells, and jobs have their traces."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api_client import Api, api_settings, heartbeat
from farm.ledger import Gpu
from farm.telling import traces_to
from farm.tracing import trace_id_of

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "diffusion-farm.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
RULES_TEST = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8"))

GPU = Gpu(
    uuid="GPU-1",
    name="RTX 4090",
    temperature_c=61,
    power_w=402.5,
    utilisation=0.98,
    memory_used_bytes=1 << 30,
    memory_total_bytes=24 << 30,
)
OF_PROMETHEUS = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate", "severity", "instance", "model", "node", "kind", "route"},
}
OF_ONE_PROCESS = ("farm_http_", "farm_webhook_")
PROMQL = re.compile(
    r"""\s+ | "(?:[^"\\]|\\.)*" | \d+(?:\.\d+)?(?:ms|[smhdwy])? | \$__(?:rate_interval|range)
    | [a-zA-Z_:][\w:]* | [-+*/%^<>=!~]=? | !~ | =~ | [(){}\[\],]""",
    re.VERBOSE,
)
WORDS = {"by", "without", "on", "ignoring", "and", "or", "unless", "group_left", "group_right", "bool", "offset"}
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk"}
FUNCTIONS = AGGREGATIONS | {"rate", "increase", "histogram_quantile", "absent", "clamp_max", "vector"}


def panels():
    """Return the dashboard's panels, without rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions():
    """Return everything that Prometheus is asked, by where that stands."""
    found = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
    for panel in panels():
        found |= {f"{panel['title']}, {target['refId']}": target["expr"] for target in panel["targets"]}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            found[f"${variable['name']}"] = f"max by ({label}) ({metric})"
    return found


def words_of(expression):
    """Return the tokens of a PromQL expression; fails on what is none, and on brackets that do not match."""
    tokens, at = [], 0
    while at < len(expression):
        match = PROMQL.match(expression, at)
        assert match, f"no PromQL: {expression[at:]!r}"
        tokens.append(match[0].strip())
        at = match.end()
    opened = []
    for token in filter(None, tokens):
        if token in "([{":
            opened.append(token)
        elif token in ")]}":
            assert opened, f"too many {token}"
            assert opened.pop() + token in ("()", "[]", "{}")
    assert not opened
    return [token for token in tokens if token]


def asked_of(expression):
    """Return the metrics of an expression with the labels that it matches, and the labels that it groups by."""
    metrics, grouped = defaultdict(set), set()
    tokens = words_of(expression)
    inside, metric, in_group = [], None, False
    for token, before in zip(tokens, ["", *tokens], strict=False):
        if token in "([{":
            inside.append(token)
            in_group = in_group or (token == "(" and before in {"by", "on", "without"})
        elif token in ")]}":
            inside.pop()
            in_group = False
        elif re.match(r"[a-zA-Z_]", token) and token not in WORDS:
            if in_group:
                grouped.add(token)
            elif inside and inside[-1] == "{":
                metrics[metric].add(token)
            elif token not in FUNCTIONS:
                metric = token
                metrics[metric] |= set()
    return metrics, grouped


def gathered_by(expression):
    """Yield each metric of an expression with the innermost aggregation that it stands in."""
    around, aggregation = [], None
    for token, after in zip(tokens := words_of(expression), [*tokens[1:], ""], strict=True):
        if token in AGGREGATIONS:
            aggregation = token
        elif token == "(":
            around.append(aggregation or (around[-1] if around else None))
            aggregation = None
        elif token == ")":
            closed = around.pop()
            if after == "(":  # it was what it groups by
                aggregation = closed
        elif token.startswith("farm_") and token not in FUNCTIONS:
            yield token, around[-1] if around else None


@pytest.fixture(scope="module")
def told(valkey_server):
    """Return the labels of every sample that the API of a farm with a GPU and a price tells, by name."""
    valkey_server.flush()
    with Api(create_app(api_settings(valkey_server.url, gpu_hour_price=1.0))) as api:
        api.post_job()
        api.parts.ledger.report(heartbeat(gpu=GPU, energy_j=1.0, steps=1, seat_steps=1))
        api.parts.ledger.report(heartbeat(gpu=GPU, energy_j=900.0, steps=2, seat_steps=2))
        for hint in api.parts.ledger.feed("scenes"):
            assert api.parts.ledger.claim(hint, "host:gpu0#1")
            assert api.parts.ledger.stored(hint, "host:gpu0#1", gpu_s=0.5, render_s=0.5)
        api.get("/v1/jobs")
        text = api.get("/metrics").text
    labels = defaultdict(set, {name: set(of) for name, of in OF_PROMETHEUS.items()})
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    return labels


@pytest.mark.parametrize("where", expressions())
def test_what_is_asked_is_told(told, where):
    """Each metric is told, with each label that is matched; what is grouped by is a label of one of them."""
    metrics, grouped = asked_of(expressions()[where])
    assert metrics
    for metric, matched in metrics.items():
        assert metric in told
        assert matched <= told[metric] | {"job", "instance"}
    assert grouped <= set().union(*(told[metric] for metric in metrics)) | {"instance"}


@pytest.mark.parametrize("where", expressions())
def test_what_several_processes_tell_alike_counts_once(where):
    """Behind a balancer every API process tells of the same farm: the `max` of that, and the sum of what is its own."""
    for metric, aggregation in gathered_by(expressions()[where]):
        assert aggregation == ("sum" if metric.startswith(OF_ONE_PROCESS) else "max"), metric


def test_charts_tell_no_more_than_they_were_told():
    """Legends name labels that there are; what is filtered away leaves a gap; what spans the range is asked once."""
    for panel in panels():
        if panel["type"] == "timeseries":
            assert panel["fieldConfig"]["defaults"]["custom"]["spanNulls"] is False
        for target in panel["targets"]:
            _, grouped = asked_of(target["expr"])
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped
            assert ("$__range]" in target["expr"]) <= target.get("instant", False)


def test_the_page_about_metrics_has_all_of_them(told):
    """Every metric stands in the table of docs/monitoring.md with its labels, and nothing else does."""
    page = (DEPLOY.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`farm_[^|]*) \|([^|]*)\|", page, re.MULTILINE)
    documented = {
        name: set(re.findall(r"`(\w+)`", labels)) for names, labels in rows for name in re.findall(r"`(\w+)`", names)
    }
    real = defaultdict(set)
    for name, labels in told.items():
        if name not in OF_PROMETHEUS:
            real[re.sub(r"_(bucket|count|sum)$", "", name)] |= labels - {"le"}
    assert documented == real


def test_a_rule_says_what_is_wrong_and_how_bad_that_is():
    """An alert in the middle of the night tells what to look at; no two have one name."""
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    (what_fires,) = [panel for panel in panels() if panel["title"] == "What fires"]
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]):
            assert label == "instance" or f"by ({label})" in rule["expr"] or f", {label})" in rule["expr"]
            assert f"{{{{{label}}}}}" in what_fires["targets"][0]["legendFormat"]


def test_each_alert_is_tried_both_ways():
    """For each there is a moment at which it fires, and one at which it does not."""
    tried = [each for case in RULES_TEST["tests"] for each in case["alert_rule_test"]]
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert {each["alertname"] for each in tried if "exp_alerts" in each} == alerts
    assert {each["alertname"] for each in tried if "exp_alerts" not in each} == alerts


def test_alerts_fire_when_they_should():
    """Prometheus' own tool plays the cases of rules_test.yml."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine: install the package prometheus")
    cases = str(DEPLOY / "prometheus" / "rules_test.yml")
    played = subprocess.run([promtool, "test", "rules", cases], capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stdout + played.stderr


def test_the_dashboard_stands_on_the_provisioned_source_and_overlaps_nowhere():
    """Panels ask the source that is chosen above, have titles and ids of their own, and do not lie on each other."""
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]


def test_every_metric_of_the_farm_has_a_unit_in_its_name_or_counts_things(told):
    """Prometheus' own habit: base units at the end, `_total` behind counters."""
    units = ("seconds", "bytes", "celsius", "watts", "ratio", "joules")
    for name in told:
        assert not re.search(r"_(ms|s|mib|mb|percent|c|w|j)(_total)?$", name), name
    assert sum(name.removesuffix("_total").endswith(units) for name in told) > 10


def test_the_request_that_brings_a_job_is_the_root_of_its_trace(redis_url):
    """Others are told only if their client keeps a trace; what a worker says of the job hangs below the request."""
    exporter = InMemorySpanExporter()
    with Api(create_app(api_settings(redis_url), traces=traces_to(exporter, service="api"))) as api:
        job = api.post_job()
        api.get(job["links"]["self"])
        api.get("/v1/jobs", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        api.post_job(model="nothing like this", expect=422)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["POST /v1/jobs", "GET /v1/jobs"]
    posted, listed = spans
    assert f"{posted.context.trace_id:032x}" == trace_id_of(job["id"])
    assert posted.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 202,
        "farm.jobs": job["id"],
    }
    assert f"{listed.context.trace_id:032x}" == "a" * 32
    assert posted.start_time < posted.end_time
