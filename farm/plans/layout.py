"""From a layout (which precision, what lives where) to a plan with its numbers, whether or not it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from farm.plans import working
from farm.plans.plan import BYTES_PER_VALUE, DYNAMIC, QUANTISED, ComponentPlan, Phase, Plan, Precision, Where

if TYPE_CHECKING:
    from farm.catalog import Family
    from farm.plans.published import ComponentSize
    from farm.plans.sizes import ModelSizes

DeviceKind = Literal["cuda", "cpu"]
Parts = list[tuple[str, int]]

_MAX_SEATS: Final = 64  # as FARM_MAX_BATCH


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be rendered and with what, as far as memory depends on it. Sizes are pixels."""

    family: Family
    sizes: ModelSizes
    width: int
    height: int
    batch: int
    guided: bool
    num_t5_tokens: int
    is_vae_fp16_safe: bool
    extra_bytes: int
    device_kind: DeviceKind

    @property
    def has_t5(self) -> bool:
        """Whether a T5 is among the text encoders."""
        return any(size.role == "t5" for size in self.sizes.components)

    @property
    def num_tokens(self) -> int:
        """Tokens of text that the denoiser attends to."""
        return working.text_tokens(self.family, num_t5_tokens=self.num_t5_tokens, has_t5=self.has_t5)


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay a model out; `denoiser` None keeps it in the precision it computes in."""

    denoiser: Precision | None = None
    denoiser_where: Where = Where.RESIDENT
    text_where: Where = Where.RESIDENT
    vae_tile_px: int | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether weights lose bits."""
        return self.denoiser in QUANTISED


def lay_out(request: Request, layout: Layout, *, vram_bytes: int) -> Plan:
    """Return the plan that `layout` makes of the model on a card of `vram_bytes`."""
    components = tuple(_place(size, request, layout) for size in request.sizes.components)
    margin = working.margin_bytes(vram_bytes)
    steady = _steady(request, components)
    state: Parts = [("seats", _seat_bytes(request))]
    costs = (
        ("encode", _encode(request, components), state),
        ("denoise", _denoise(request, components), [*state, ("working", _step_bytes(request, components))]),
        ("decode", _decode(request, components, layout), state),
    )
    room = vram_bytes - margin - _total(steady)
    return Plan(
        family=request.family,
        width=request.width,
        height=request.height,
        guided=request.guided,
        batch=request.batch,
        vram_bytes=vram_bytes,
        margin_bytes=margin,
        components=components,
        vae_tile_px=layout.vae_tile_px,
        max_batch=max(0, min(_MAX_SEATS, *((room - _total(once)) // _total(each) for _, once, each in costs))),
        steady_bytes=_total(steady),
        phases=tuple(_phase(name, steady, once, each, request.batch) for name, once, each in costs),
    )


def _place(size: ComponentSize, request: Request, layout: Layout) -> ComponentPlan:
    """Return where and how one component is kept."""
    compute = _compute_precision(size, request, layout)
    storage, where = compute, Where.RESIDENT
    if size.role == "denoiser":
        storage, where = layout.denoiser or compute, layout.denoiser_where
    elif size.role != "vae":
        where = layout.text_where
    narrow = size.num_block_values if storage in QUANTISED else 0
    if storage in DYNAMIC:
        # Linear layers alone, and those that modulate stay: of a UNet with its convolutions no saving is counted on.
        narrow = round(narrow * working.DYNAMIC_SHARE) if size.name == "transformer" else 0
    weight_bytes = narrow * BYTES_PER_VALUE[storage] + (size.num_values - narrow) * BYTES_PER_VALUE[compute]
    return ComponentPlan(size.name, storage, compute, where, round(weight_bytes))


def _compute_precision(size: ComponentSize, request: Request, layout: Layout) -> Precision:
    if request.device_kind == "cpu":
        return Precision.FP32
    if layout.denoiser is Precision.FP8_DYNAMIC:
        return Precision.BF16  # the only one that products of scaled rows come out in
    if size.role == "vae" and not request.is_vae_fp16_safe:
        return Precision.BF16
    return working.FACTS[request.family].precision


def _steady(request: Request, components: tuple[ComponentPlan, ...]) -> Parts:
    """Return what is on the device all the time."""
    parts: Parts = [("text embeddings", working.EMBEDDINGS_BYTES)]
    if request.device_kind != "cpu":
        parts += [("CUDA context", working.CONTEXT_BYTES), ("workspaces", working.WORKSPACE_BYTES)]
    if request.extra_bytes:
        parts.append(("extra weights", request.extra_bytes))
    return parts + [(part.name, part.weight_bytes) for part in components if part.where is Where.RESIDENT]


def _encode(request: Request, components: tuple[ComponentPlan, ...]) -> Parts:
    """Return what encoding adds: text encoders come one at a time, so the one that takes most counts."""
    costs: list[Parts] = []
    for part, size in zip(components, request.sizes.components, strict=True):
        if size.role in {"clip", "t5"}:
            work = working.encode_bytes(size, part.compute, num_t5_tokens=request.num_t5_tokens)
            costs.append([("working", round(work * working.FRAGMENTS)), *_visiting(part, size)])
    return max(costs, key=_total, default=[])


def _denoise(request: Request, components: tuple[ComponentPlan, ...]) -> Parts:
    """Return what denoising adds, whatever the number of seats: layers of a denoiser that is not there as computed."""
    part, size = _find(request, components, "denoiser")
    if part.where is Where.RESIDENT and part.is_lossy:
        return [("widened layer", round(size.largest_tensor * BYTES_PER_VALUE[part.compute]))]
    return _visiting(part, size)


def _decode(request: Request, components: tuple[ComponentPlan, ...], layout: Layout) -> Parts:
    """Return what decoding adds: images are decoded one at a time."""
    part, size = _find(request, components, "vae")
    work = working.decode_bytes(
        size, part.compute, width=request.width, height=request.height, tile_px=layout.vae_tile_px
    )
    return [("working", round(work * working.FRAGMENTS))]


def _visiting(part: ComponentPlan, size: ComponentSize) -> Parts:
    """Return what a component that does not live on the device takes there while it is used."""
    match part.where:
        case Where.RESIDENT:
            return []
        case Where.EVICTED:
            return [(part.name, part.weight_bytes)]
        case Where.STREAMED:
            layers = working.STREAMED_LAYERS * size.largest_tensor * BYTES_PER_VALUE[part.compute]
            return [(part.name, min(part.weight_bytes, round(layers)))]


def _step_bytes(request: Request, components: tuple[ComponentPlan, ...]) -> int:
    """Return what a step holds for one seat."""
    part, size = _find(request, components, "denoiser")
    work = working.denoise_bytes(
        request.family,
        size,
        part.compute,
        width=request.width,
        height=request.height,
        num_tokens=request.num_tokens,
        rows=2 if request.guided else 1,
    )
    return round(work * working.FRAGMENTS)


def _seat_bytes(request: Request) -> int:
    return working.seat_bytes(
        request.family,
        width=request.width,
        height=request.height,
        num_tokens=request.num_tokens,
        guided=request.guided,
    )


def _find(
    request: Request, components: tuple[ComponentPlan, ...], role: Literal["denoiser", "vae"]
) -> tuple[ComponentPlan, ComponentSize]:
    """Return the plan and the size of the one component of `role`."""
    size = request.sizes.component(role)
    return next(part for part in components if part.name == size.name), size


def _phase(name: str, steady: Parts, once: Parts, each: Parts, batch: int) -> Phase:
    """Return a phase: what is always there first, so that phases compare, then what comes and goes."""
    passing: dict[str, int] = {}
    for label, num_bytes in [*once, *((label, num_bytes * batch) for label, num_bytes in each)]:
        passing[label] = passing.get(label, 0) + num_bytes
    return Phase(name, (*_largest_first(steady), *_largest_first(list(passing.items()))), seat_bytes=_total(each))


def _largest_first(parts: Parts) -> Parts:
    return sorted(parts, key=lambda part: -part[1])


def _total(parts: Parts) -> int:
    return sum(num_bytes for _, num_bytes in parts)
