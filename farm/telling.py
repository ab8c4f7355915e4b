"""Spans told to an OpenTelemetry collector by way of its SDK. The only file that knows it; loaded only if wanted."""

from __future__ import annotations

import hashlib
import threading
from importlib.metadata import version
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from farm.tracing import SPAN_HEX, TRACE_HEX, Span, Traces

_FAREWELL_S: Final = 3.0


def traces_by_http(endpoint: str | None, *, service: str, instance: str) -> Traces:
    """Return what tells the collector at this base URL, or the one that OpenTelemetry's own variables name."""
    exporter = OTLPSpanExporter(endpoint=None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces")
    return traces_to(exporter, service=service, instance=instance)


def traces_to(exporter: SpanExporter, *, service: str, instance: str = "") -> Traces:
    """Return what tells `exporter`, from a thread of its own."""
    about = {"service.name": f"diffusion-farm-{service}", "service.version": version("diffusion-farm")}
    if instance:
        about["service.instance.id"] = instance
    ids = _Ids()
    # Its own farewell at the end of the process would wait for half a minute.
    provider = TracerProvider(resource=Resource.create(about), id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return _Telling(provider, ids)


class _Ids(RandomIdGenerator):
    """Makes ids: those that this thread has laid ready, else random ones."""

    def __init__(self) -> None:
        self._ready = threading.local()

    def lay_ready(self, trace_id: int, span_id: int) -> None:
        """Let the next root that this thread begins have these."""
        self._ready.trace, self._ready.span = trace_id, span_id

    def generate_trace_id(self) -> int:
        """Return the id of a new trace."""
        return int(vars(self._ready).pop("trace", 0)) or super().generate_trace_id()

    def generate_span_id(self) -> int:
        """Return the id of a new span."""
        return int(vars(self._ready).pop("span", 0)) or super().generate_span_id()


class _Telling(Traces):
    is_on = True

    def __init__(self, provider: TracerProvider, ids: _Ids) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("diffusion-farm", version("diffusion-farm"))

    def tell_job(self, job_id: str, span: Span, *, caller: str = "") -> None:
        links = [trace.Link(trace.get_current_span(came).get_span_context())] if (came := _context_of(caller)) else []
        self._ids.lay_ready(*_ids_of(job_id))
        self._tell(span, Context(), links=links, kind=trace.SpanKind.SERVER)

    def tell_part(self, job_id: str, span: Span) -> None:
        trace_id, span_id = _ids_of(job_id)
        # Whoever told the root has decided by the same id: all of a job's trace is kept, or none.
        decision = self._provider.sampler.should_sample(None, trace_id, span.name).decision
        is_kept = decision.is_sampled()  # type: ignore[no-untyped-call]
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if is_kept else trace.TraceFlags.DEFAULT)
        root = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        self._tell(span, trace.set_span_in_context(trace.NonRecordingSpan(root), Context()))

    def tell_request(self, span: Span, *, caller: str) -> None:
        if came := _context_of(caller):
            self._tell(span, came, kind=trace.SpanKind.SERVER)

    def close(self) -> None:
        farewell = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_S)

    def _tell(self, span: Span, context: Context, **how: Any) -> None:
        told = self._tracer.start_span(
            span.name, context, start_time=span.started_ns, attributes=dict(span.attributes), **how
        )
        if span.error is not None:
            told.set_status(trace.Status(trace.StatusCode.ERROR, span.error))
        inside = trace.set_span_in_context(told, context)
        for part in span.parts:
            self._tell(part, inside)
        told.end(span.ended_ns)


def _ids_of(job_id: str) -> tuple[int, int]:
    """Return the ids of a job's trace and of its root."""
    digest = hashlib.sha256(job_id.encode()).hexdigest()
    return int(digest[:TRACE_HEX], 16), int(digest[TRACE_HEX : TRACE_HEX + SPAN_HEX], 16)


def _context_of(traceparent: str) -> Context | None:
    """Return what a client's `traceparent` means, None where it means nothing."""
    came = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
    return came if trace.get_current_span(came).get_span_context().is_valid else None
