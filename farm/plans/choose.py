"""Choosing a plan: of an ordered list of layouts, fastest and most exact first, the first that fits with a margin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from farm.errors import Fatal
from farm.plans import working
from farm.plans.layout import DeviceKind, Layout, Request, lay_out
from farm.plans.plan import Precision, Where

if TYPE_CHECKING:
    from collections.abc import Iterator

    from farm.catalog import Family, ModelRow
    from farm.plans.plan import Plan
    from farm.plans.sizes import ModelSizes

_GIB: Final = 1 << 30
_QUANTISED: Final[dict[Family, tuple[Precision, ...]]] = {
    "sd15": (Precision.FP8,),
    "sdxl": (Precision.FP8,),
    "flux": (Precision.FP8, Precision.NF4),
    "sd3": (Precision.FP8, Precision.NF4),
}
"""What the denoiser may be kept in where 16 bits do not fit. UNets are too small to be worth four bits."""


class NoPlan(Fatal):
    """No layout of the model fits; `needed_bytes` is what the smallest one takes, margin included."""

    def __init__(self, message: str, *, needed_bytes: int, vram_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.vram_bytes = vram_bytes


def plan_for_row(
    row: ModelRow,
    sizes: ModelSizes,
    *,
    vram_bytes: int,
    width: int | None = None,
    height: int | None = None,
    guided: bool | None = None,
    batch: int = 1,
    allow_lossy: bool = True,
    can_load_4bit: bool = True,
    extra_bytes: int = 0,
    device_kind: DeviceKind = "cuda",
) -> Plan:
    """Return the plan for a model of the catalog, at its own size and guidance where not told otherwise.

    A row that forbids lossy plans wins over `allow_lossy`; one that asks for a precision gets plans with that precision
    alone, where lossy ones are allowed. Raises NoPlan, naming the model.
    """
    is_guided = row.guidance_scale > 1 if guided is None else guided
    try:
        return plan_for(
            sizes,
            row.family,
            vram_bytes=vram_bytes,
            width=width or row.width,
            height=height or row.height,
            guided=is_guided and row.guidance == "cfg",
            batch=batch,
            num_t5_tokens=row.max_sequence_length,
            is_vae_fp16_safe=row.family != "sdxl" or row.vae is not None,
            allow_lossy=allow_lossy and row.allow_lossy,
            precision=None if row.precision is None else Precision(row.precision),
            can_load_4bit=can_load_4bit,
            extra_bytes=extra_bytes,
            device_kind=device_kind,
        )
    except NoPlan as error:
        raise NoPlan(
            f"{row.name} does not fit: {error}", needed_bytes=error.needed_bytes, vram_bytes=error.vram_bytes
        ) from None


def plan_for(
    sizes: ModelSizes,
    family: Family,
    *,
    vram_bytes: int,
    width: int,
    height: int,
    guided: bool,
    batch: int = 1,
    num_t5_tokens: int = 512,
    is_vae_fp16_safe: bool = True,
    allow_lossy: bool = True,
    precision: Precision | None = None,
    can_load_4bit: bool = True,
    extra_bytes: int = 0,
    device_kind: DeviceKind = "cuda",
) -> Plan:
    """Return the fastest and most exact plan that fits into `vram_bytes` with a margin, for `batch` seats.

    `guided` images take two rows of a forward. A VAE that is not `is_vae_fp16_safe` gets bf16, never silent float32.
    `extra_bytes` are weights beside the model's own (LoRAs, ControlNets). Four bits need a worker that `can_load_4bit`.
    On a CPU `vram_bytes` is RAM, and everything is resident in float32. With `precision` the denoiser is kept in that
    one, fits it in 16 bits or not. Raises NoPlan, with the numbers.
    """
    if min(width, height, batch, vram_bytes) <= 0:
        raise ValueError(f"sizes must be positive: {width}x{height}, batch {batch}, {vram_bytes} bytes")
    request = Request(
        family=family,
        sizes=sizes,
        width=width,
        height=height,
        batch=batch,
        guided=guided,
        num_t5_tokens=num_t5_tokens,
        is_vae_fp16_safe=is_vae_fp16_safe,
        extra_bytes=extra_bytes,
        device_kind=device_kind,
    )
    asked = precision if allow_lossy and device_kind != "cpu" else None
    layouts = [
        layout
        for layout in (_ladder(request) if asked is None else _ladder_in(request, asked))
        if (allow_lossy or not layout.is_lossy) and (can_load_4bit or layout.denoiser is not Precision.NF4)
    ]
    plans = [lay_out(request, layout, vram_bytes=vram_bytes) for layout in layouts]
    for plan in plans:
        if plan.headroom_bytes >= plan.margin_bytes:
            return plan
    smallest = min(plans, key=lambda plan: plan.peak_bytes)
    needed = smallest.peak_bytes + smallest.margin_bytes
    images = f"{batch} images" if batch > 1 else "an image"
    raise NoPlan(
        f"{images} of {width}x{height} at a time needs {needed / _GIB:.1f} GiB, you have {vram_bytes / _GIB:.1f} GiB"
        f" (smallest plan: {smallest.summary}" + ("" if allow_lossy else "; lossy plans not allowed") + ")",
        needed_bytes=needed,
        vram_bytes=vram_bytes,
    )


def _ladder(request: Request) -> Iterator[Layout]:
    """Yield the layouts worth trying, best first."""
    yield Layout()
    if request.device_kind == "cpu":
        return
    for denoiser in (None, *_QUANTISED[request.family]):
        yield from _smaller(request, denoiser)
    text_where = _text_wheres(request)[-1]
    for tile_px in _tiles(request):
        yield Layout(denoiser_where=Where.STREAMED, text_where=text_where, vae_tile_px=tile_px)


def _ladder_in(request: Request, precision: Precision) -> Iterator[Layout]:
    """Yield the layouts with the denoiser on the card in `precision`, best first."""
    yield Layout(denoiser=precision)
    yield from _smaller(request, precision)


def _smaller(request: Request, denoiser: Precision | None) -> Iterator[Layout]:
    """Yield the layouts with this denoiser on the card that take less than all of the model there."""
    for text_where in _text_wheres(request):
        for tile_px in _tiles(request):
            yield Layout(denoiser=denoiser, text_where=text_where, vae_tile_px=tile_px)


def _text_wheres(request: Request) -> tuple[Where, ...]:
    # CLIPs come and go in no time. T5's ten gigabytes may be too many at once: then they pass layer by layer.
    return (Where.EVICTED, Where.STREAMED) if request.has_t5 else (Where.EVICTED,)


def _tiles(request: Request) -> tuple[int | None, ...]:
    return (None, working.TILE_PX) if max(request.width, request.height) > working.TILE_PX else (None,)
