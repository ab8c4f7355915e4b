"""Traces of jobs: one for each, found by the job's id, whole or not at all; and nothing where nobody asked."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from farm.errors import Fatal
from farm.settings import Settings
from farm.telling import traces_to
from farm.tracing import OFF, Span, make_traces, trace_id_of

JOB = "job_01m823mngen94670qtep"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Wait at a farewell until all is sent, however busy the machine is."""
    monkeypatch.setattr("farm.telling._FAREWELL_S", 100.0)


@pytest.fixture
def told():
    """Return an exporter that keeps what it is told."""
    return InMemorySpanExporter()


def spans_of(traces, told):
    """Return what was told, by name, after all of it was sent."""
    traces.close()
    return {span.name: span for span in told.get_finished_spans()}


def test_all_of_a_job_is_one_trace_under_its_request(told):
    """Whoever renders need not know who asked: the ids follow from the job's id, as sha256sum tells them."""
    traces = traces_to(told, service="api")
    traces.tell_job(JOB, Span("POST /v1/jobs", 1_000, 2_000, {"http.response.status_code": 202}))
    elsewhere = InMemorySpanExporter()
    worker = traces_to(elsewhere, service="worker", instance="host:gpu0#1")
    worker.tell_part(JOB, Span("image", 3_000, 9_000, parts=(Span("claim", 3_000, 4_000), Span("put", 8_000, 9_000))))
    root = spans_of(traces, told)["POST /v1/jobs"]
    spans = spans_of(worker, elsewhere)
    assert {f"{span.context.trace_id:032x}" for span in (root, *spans.values())} == {trace_id_of(JOB)}
    assert trace_id_of(JOB) == "77a8ab68634a71ca70d51d50a525ee29"
    assert root.parent is None
    assert (root.kind, root.start_time, root.end_time) == (SpanKind.SERVER, 1_000, 2_000)
    assert spans["image"].parent.span_id == root.context.span_id
    assert {spans[name].parent.span_id for name in ("claim", "put")} == {spans["image"].context.span_id}
    assert (spans["put"].start_time, spans["put"].end_time) == (8_000, 9_000)
    assert spans["image"].resource.attributes["service.name"] == "diffusion-farm-worker"
    assert spans["image"].resource.attributes["service.instance.id"] == "host:gpu0#1"


def test_ids_laid_ready_are_used_once(told):
    """The span after a job's root has ids of its own."""
    traces = traces_to(told, service="api")
    traces.tell_job(JOB, Span("one", 1, 2))
    traces.tell_job(f"{JOB}x", Span("two", 1, 2, parts=(Span("inside", 1, 2),)))
    spans = spans_of(traces, told)
    assert len({span.context.span_id for span in spans.values()}) == 3
    assert spans["two"].context.trace_id == spans["inside"].context.trace_id != spans["one"].context.trace_id


def test_a_client_that_keeps_a_trace_finds_its_request_there(told):
    """Its request is a span of its own trace, and the job's trace links to it; nonsense links to nothing."""
    traces = traces_to(told, service="api")
    traces.tell_request(Span("GET /v1/jobs", 1, 2), caller=CALLER)
    traces.tell_job(JOB, Span("POST /v1/jobs", 1, 2), caller=CALLER)
    traces.tell_job(f"{JOB}x", Span("POST /sdapi", 1, 2), caller="00-nonsense")
    traces.tell_request(Span("unknown", 1, 2), caller="")
    spans = spans_of(traces, told)
    assert f"{spans['GET /v1/jobs'].context.trace_id:032x}" == CALLER.split("-")[1]
    assert f"{spans['GET /v1/jobs'].parent.span_id:016x}" == CALLER.split("-")[2]
    (link,) = spans["POST /v1/jobs"].links
    assert f"{link.context.trace_id:032x}" == CALLER.split("-")[1]
    assert spans["POST /sdapi"].links == ()
    assert "unknown" not in spans


def test_of_sampled_jobs_everything_is_told_or_nothing(told, monkeypatch):
    """API and workers decide by the same id, without a word between them."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    traces = traces_to(told, service="api")
    for number in range(40):
        traces.tell_job(f"job_{number}", Span("root", 1, 2))
        traces.tell_part(f"job_{number}", Span("image", 1, 2, parts=(Span("claim", 1, 2),)))
    traces.close()
    names = {}
    for span in told.get_finished_spans():
        names.setdefault(span.context.trace_id, []).append(span.name)
    assert 5 < len(names) < 35
    assert all(sorted(found) == ["claim", "image", "root"] for found in names.values())


def test_nobody_is_told_and_nothing_imported_unless_it_is_asked_for(monkeypatch):
    """Without an endpoint OpenTelemetry need not even be installed."""
    monkeypatch.setitem(sys.modules, "farm.telling", None)
    assert make_traces(Settings(), "api", environment={}) is OFF


class Collector(HTTPServer):
    """An OpenTelemetry collector, as far as spans go."""

    def __init__(self):
        received = self.received = []
        arrived = self.arrived = threading.Event()
        answers = self.answers = threading.Event()
        answers.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path, ExportTraceServiceRequest.FromString(body)))
                arrived.set()
                answers.wait(100)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def collector():
    """Return a collector on loopback."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.answers.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("by", ["setting", "variable"])
def test_a_collector_is_told_over_http(collector, monkeypatch, by):
    """Either FARM_OTLP_ENDPOINT or OpenTelemetry's own variable is enough; the path is the standard's."""
    url = f"http://127.0.0.1:{collector.server_port}"
    if by == "setting":
        traces = make_traces(Settings(otlp_endpoint=f"{url}/"), "worker", environment={})
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        traces = make_traces(Settings(), "worker", environment={"OTEL_EXPORTER_OTLP_ENDPOINT": url})
    traces.tell_part(JOB, Span("image", 1, 2))
    traces.close()
    assert collector.arrived.wait(100)
    ((path, request),) = collector.received
    assert path == "/v1/traces"
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("image", trace_id_of(JOB))


def test_a_collector_that_hangs_holds_nobody_up(collector, monkeypatch):
    """Spans are taken and the farewell ends while it still has not answered the first of them."""
    monkeypatch.setattr("farm.telling._FAREWELL_S", 0.2)
    collector.answers.clear()
    traces = make_traces(Settings(otlp_endpoint=f"http://127.0.0.1:{collector.server_port}"), "worker", environment={})
    for _ in range(600):  # more than one request takes: the exporter begins
        traces.tell_part(JOB, Span("image", 1, 2))
    assert collector.arrived.wait(100)
    traces.close()
    assert not collector.answers.is_set()
    assert len(collector.received) == 1


def test_whoever_wants_traces_and_has_no_opentelemetry_is_told_what_to_install(monkeypatch):
    """A farm that silently told nobody would be found out when its traces are needed."""
    monkeypatch.setitem(sys.modules, "farm.telling", None)
    with pytest.raises(Fatal, match=r"diffusion-farm\[tracing\]"):
        make_traces(Settings(otlp_endpoint="http://collector:4318"), "api", environment={})
