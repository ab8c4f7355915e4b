"""Traces, as an option: what happened to a request and to each image, told to an OpenTelemetry collector.

All of a job is one trace, whose id follows from the job's: nothing has to travel with messages, and whoever knows the
job finds its trace. Spans are told when they are over, by threads that have time to, and sent by a thread of the SDK's
own: nothing waits for a collector, and what does not fit its queue is lost. Without an endpoint nothing is imported and
nothing is told. What tells is in farm/telling.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from farm.errors import Fatal
from farm.settings import Settings

TRACE_HEX: Final = 32
"""Hexadecimal digits of a trace's id, as W3C's Trace Context has them."""
SPAN_HEX: Final = 16
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


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
    return hashlib.sha256(job_id.encode()).hexdigest()[:TRACE_HEX]


def make_traces(
    settings: Settings, service: Literal["api", "worker"], *, environment: Mapping[str, str], instance: str = ""
) -> Traces:
    """Return what tells a collector, or nobody where neither the settings nor OpenTelemetry's own variables name one.

    Raises Fatal when they do and the extra `tracing` is not installed.
    """
    if settings.otlp_endpoint is None and not any(environment.get(name) for name in _ENDPOINTS):
        return OFF
    try:
        from farm.telling import traces_by_http  # noqa: PLC0415  an option, and half a second of imports
    except ImportError as error:
        raise Fatal(
            f"traces are wanted, but OpenTelemetry is not installed ({error}); pip install 'diffusion-farm[tracing]'"
        ) from error
    return traces_by_http(settings.otlp_endpoint, service=service, instance=instance)
