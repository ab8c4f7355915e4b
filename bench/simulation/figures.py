"""From diaries and counters to figures. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulation.cards import Card


@dataclass(frozen=True)
class Window:
    """The time in which every GPU could have been full: after the start, before the work runs out. Monotonic s."""

    begins: float
    ends: float

    @property
    def length_s(self) -> float:
        """Its length."""
        return self.ends - self.begins

    def overlap_s(self, began: float, ended: float) -> float:
        """Return how much of a span lies within."""
        return max(0.0, min(ended, self.ends) - max(began, self.begins))


@dataclass(frozen=True)
class GpuFigures:
    """What the GPUs did within the window. Shares are of all GPUs' time."""

    idle_share: float  # no seat taken although work waited
    lost_share: float  # images not rendered, of those that always full steps would have made
    mean_seats: float  # per step
    images_per_s: float
    offered_images_per_s: float  # what the cards would render if no step ever lacked a seat


def gpu_figures(
    diaries: Sequence[Mapping[str, Any]], window: Window, card: Card, max_batch: int, *, dilation: float = 1.0
) -> GpuFigures:
    """Sum diaries of GPUs whose steps took `dilation` times as long as `card`'s.

    The farm's own latencies are not dilated, so they weigh `dilation` times as much: shares are those of cards at their
    full speed that wait as long for each image as these did.
    """
    slowed = card.slowed(dilation)
    busy_s = seat_s = full_s = 0.0
    for diary in diaries:
        for began, ended, seats in diary["steps"]:
            overlap_s = window.overlap_s(began, ended)
            busy_s += overlap_s
            seat_s += overlap_s * seats
            # How long the same work takes when it rides in full steps.
            full_s += overlap_s / slowed.step_s(seats) * seats / max_batch * slowed.step_s(max_batch)
    all_s = window.length_s * len(diaries)
    return GpuFigures(
        idle_share=_undilated(all_s - busy_s, busy_s, dilation),
        lost_share=_undilated(all_s - full_s, full_s, dilation),
        mean_seats=seat_s / busy_s if busy_s else 0.0,
        images_per_s=full_s / all_s * slowed.images_per_s(max_batch) * len(diaries),
        offered_images_per_s=slowed.images_per_s(max_batch) * len(diaries),
    )


def _undilated(waste_s: float, work_s: float, dilation: float) -> float:
    """Return the share of waste beside work at full speed."""
    waste_s = max(0.0, waste_s)
    total_s = waste_s + work_s / dilation
    return waste_s / total_s if total_s else 0.0


def refill_latencies(diaries: Iterable[Mapping[str, Any]], window: Window) -> list[float]:
    """Return, for each seat that fell free within the window, the seconds until its next unit was claimed and there."""
    return [
        wait_s
        for diary in diaries
        for free_since, wait_s in diary["refills"]
        if window.begins <= free_since <= window.ends
    ]


def percentiles_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the maximum, by the nearest rank, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    ranks = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)], 1)
        for name, share in ranks.items()
    }


@dataclass(frozen=True)
class RedisSample:
    """Redis' counters at one moment."""

    at_s: float
    cpu_s: float
    input_bytes: int
    output_bytes: int
    aof_bytes: int
    connections: int
    calls: Mapping[str, int]  # by command, those of scripts included
    scripts_s: float

    @classmethod
    def of(cls, info: Mapping[str, Any], stats: Mapping[str, Mapping[str, Any]], at_s: float) -> RedisSample:
        """Read the answers of INFO and INFO commandstats."""
        names = {key: key.removeprefix("cmdstat_") for key in stats}
        return cls(
            at_s=at_s,
            cpu_s=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            input_bytes=int(info["total_net_input_bytes"]),
            output_bytes=int(info["total_net_output_bytes"]),
            aof_bytes=int(info.get("aof_current_size", 0)),
            connections=int(info["connected_clients"]),
            calls={name: int(stats[key]["calls"]) for key, name in names.items()},
            scripts_s=float(stats.get("cmdstat_evalsha", {}).get("usec", 0)) / 1e6,
        )


@dataclass(frozen=True)
class RedisFigures:
    """What Redis did between two samples, per second and per image."""

    cpu_share: float  # of one core
    cpu_ms_per_image: float
    images_per_s_of_one_core: float  # if it did nothing else and grew linearly
    commands_per_s: float
    commands_per_image: float  # of clients and of scripts
    scripts_per_image: float
    script_ms_per_image: float  # running Lua: what is left of the CPU when reading, writing and fsync cost nothing
    input_bytes_per_image: float
    output_bytes_per_image: float
    aof_bytes_per_image: float
    connections: int  # at the end
    per_image: dict[str, float]  # calls by command, the most frequent first

    @classmethod
    def between(cls, before: RedisSample, after: RedisSample, images: int) -> RedisFigures:
        """Divide what happened by images and time."""
        calls = {name: count - before.calls.get(name, 0) for name, count in after.calls.items()}
        total, images = sum(calls.values()), max(1, images)
        cpu_s, took_s = after.cpu_s - before.cpu_s, after.at_s - before.at_s
        often = sorted(calls, key=lambda name: -calls[name])
        return cls(
            cpu_share=round(cpu_s / took_s, 3),
            cpu_ms_per_image=round(cpu_s / images * 1000, 3),
            images_per_s_of_one_core=round(images / cpu_s, 0) if cpu_s else 0.0,
            commands_per_s=round(total / took_s, 0),
            commands_per_image=round(total / images, 1),
            scripts_per_image=round(calls.get("evalsha", 0) / images, 2),
            script_ms_per_image=round((after.scripts_s - before.scripts_s) / images * 1000, 3),
            input_bytes_per_image=round((after.input_bytes - before.input_bytes) / images, 0),
            output_bytes_per_image=round((after.output_bytes - before.output_bytes) / images, 0),
            aof_bytes_per_image=round((after.aof_bytes - before.aof_bytes) / images, 0),
            connections=after.connections,
            per_image={name: round(calls[name] / images, 2) for name in often if calls[name]},
        )


def as_row(figures: GpuFigures) -> dict[str, float]:
    """Return the figures rounded for the report."""
    return {name: round(value, 4) for name, value in asdict(figures).items()}
