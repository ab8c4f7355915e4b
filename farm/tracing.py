"""Traces, as an option: what happened to a request and to each image, told to an OpenTelemetry collector.

All of a job is one trace, whose id follows from the job's: nothing has to travel with messages, and whoever knows the
job finds its trace. Spans are told when they are over, by threads that have time to, and sent by a thread of the SDK's
own: nothing waits for a collector, and what does not fit its queue is lost. Without an endpoint nothing is imported and
nothing is told. The only file that knows OpenTelemetry.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Literal

from farm.errors import Fatal
from farm.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FAREWELL_S: Final = 3.0
_TRACE_HEX: Final = 32  # digits, as W3C's Trace Context has them
_SPAN_HEX: Final = 16


@dataclass(frozen=True, slots=True)
class Span:
    """Something that is over: its name, when it began and ended (Unix nanoseconds), and what it was made of."""

    name: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    parts: Sequence[Span] = ()
    error: str | None = None


class Traces:
    """Tells nobody: what everything works with unless traces are wanted."""

    is_on: bool = False

    def tell_job(self, job_id: str, span: Span, *, caller: str = "") -> None:
        """Tell of the request that a job came with, as the root of the job's trace.

        `caller` is its header `traceparent`, if it had one: the trace that the client keeps, which this one links to.
        """

    def tell_part(self, job_id: str, span: Span) -> None:
        """Tell of something that was done for a job."""

    def tell_request(self, span: Span, *, caller: str) -> None:
        """Tell of a request within the trace that its client keeps."""

    def close(self) -> None:
        """Send what has not been sent, if that is quickly done, and stop."""


OFF: Final = Traces()


def trace_id_of(job_id: str) -> str:
    """Return the id of a job's trace: the first 32 hexadecimal digits of the SHA-256 of the job's id."""
    return hashlib.sha256(job_id.encode()).hexdigest()[:_TRACE_HEX]


def make_traces(
    settings: Settings, service: Literal["api", "worker"], *, environment: Mapping[str, str], instance: str = ""
) -> Traces:
    """Return what tells a collector, or nobody where neither the settings nor OpenTelemetry's own variables name one.

    Raises Fatal when they do and the extra `tracing` is not installed.
    """
    if settings.otlp_endpoint is None and not any(environment.get(name) for name in _ENDPOINTS):
        return OFF
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  an option
    except ImportError as error:
        raise Fatal(
            f"traces are wanted, but OpenTelemetry is not installed ({error}); pip install 'diffusion-farm[tracing]'"
        ) from error
    base = settings.otlp_endpoint
    exporter = OTLPSpanExporter(endpoint=None if base is None else f"{base.rstrip('/')}/v1/traces")
    return traces_to(exporter, service=service, instance=instance)


def traces_to(exporter: SpanExporter, *, service: str, instance: str = "") -> Traces:
    """Return what tells `exporter`, from a thread of its own."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  an option
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    about = {"service.name": f"diffusion-farm-{service}", "service.version": version("diffusion-farm")}
    if instance:
        about["service.instance.id"] = instance
    ids = _make_ids()
    # Its own farewell at the end of the process would wait for half a minute.
    provider = TracerProvider(resource=Resource.create(about), id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return _Telling(provider, ids)


def _make_ids() -> Any:
    """Return a maker of ids: those that were laid ready by this thread, else random ones."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415  an option

    class Ids(RandomIdGenerator):
        ready = threading.local()

        def generate_trace_id(self) -> int:
            return int(vars(self.ready).pop("trace", 0)) or super().generate_trace_id()

        def generate_span_id(self) -> int:
            return int(vars(self.ready).pop("span", 0)) or super().generate_span_id()

    return Ids()


class _Telling(Traces):
    """Tells by way of OpenTelemetry's SDK."""

    is_on = True

    def __init__(self, provider: TracerProvider, ids: Any) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("diffusion-farm", version("diffusion-farm"))

    def tell_job(self, job_id: str, span: Span, *, caller: str = "") -> None:
        from opentelemetry import trace  # noqa: PLC0415  an option
        from opentelemetry.context import Context  # noqa: PLC0415

        links = [trace.Link(trace.get_current_span(came).get_span_context())] if (came := _context_of(caller)) else []
        self._ids.ready.trace, self._ids.ready.span = _ids_of(job_id)
        self._tell(span, Context(), links=links, kind=trace.SpanKind.SERVER)

    def tell_part(self, job_id: str, span: Span) -> None:
        from opentelemetry import trace  # noqa: PLC0415  an option
        from opentelemetry.context import Context  # noqa: PLC0415

        trace_id, span_id = _ids_of(job_id)
        # Whoever told the root has decided by the same id: all of a job's trace is kept, or none.
        decision = self._provider.sampler.should_sample(None, trace_id, span.name).decision
        is_kept = decision.is_sampled()  # type: ignore[no-untyped-call]
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if is_kept else trace.TraceFlags.DEFAULT)
        root = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        self._tell(span, trace.set_span_in_context(trace.NonRecordingSpan(root), Context()))

    def tell_request(self, span: Span, *, caller: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415  an option

        if came := _context_of(caller):
            self._tell(span, came, kind=trace.SpanKind.SERVER)

    def close(self) -> None:
        farewell = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_S)

    def _tell(self, span: Span, context: Context, **how: Any) -> None:
        from opentelemetry import trace  # noqa: PLC0415  an option

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
    return int(digest[:_TRACE_HEX], 16), int(digest[_TRACE_HEX : _TRACE_HEX + _SPAN_HEX], 16)


def _context_of(traceparent: str) -> Context | None:
    """Return what a client's `traceparent` means, None where it means nothing."""
    from opentelemetry import trace  # noqa: PLC0415  an option
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    came = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
    return came if trace.get_current_span(came).get_span_context().is_valid else None
