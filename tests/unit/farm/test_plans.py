"""Memory plans: true sizes, working memory as traced on full-size networks, and the layouts that cards get."""

import contextlib
import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.catalog import Catalog
from farm.plans import (
    NoPlan,
    Precision,
    Where,
    plan_for_row,
    sizes_of,
    working,
)
from farm.plans.plan import BYTES_PER_VALUE, DYNAMIC
from farm.plans.published import PUBLISHED
from farm.plans.sizes import measure
from farm.weights import BadHeader, TensorInfo, read_header
from live_memory import live_memory
from worker.bench.published import CHECKPOINTS, build, component_names

GIB = 1 << 30
ROWS = {row.name: row for row in Catalog()}
CARDS_GIB = (8, 12, 16, 24, 48, 80)


def plan(name, vram_gib, tmp_path, **options):
    """Return the plan of a model of the catalog whose files are not on disk."""
    row = ROWS[name]
    return plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=int(vram_gib * GIB), **options)


def saved_values(module):
    """Return the tensors of a full-size module as a file would hold them: tied ones once."""
    tensors = dict(module.state_dict())
    if "shared.weight" in tensors:
        tensors.pop("encoder.embed_tokens.weight", None)
    return tensors


# -- sizes


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_published_sizes_are_those_of_the_full_size_classes(checkpoint):
    """Parameters and saved buffers of every component, counted on diffusers' own classes, are the table's, exactly."""
    table = {size.name: size for size in PUBLISHED[checkpoint]}
    assert tuple(table) == component_names(checkpoint)
    for name, size in table.items():
        tensors = saved_values(build(checkpoint, name))
        infos = {key: TensorInfo("F16", tuple(value.shape), 2 * value.numel()) for key, value in tensors.items()}
        assert measure(name, infos) == size
        assert size.num_values == sum(value.numel() for value in tensors.values())


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_whole_plan_has_the_bytes_of_the_instantiated_model(checkpoint, tmp_path):
    """What a plan says each component takes in 16 bits is what the meta-device model takes, within a thousandth."""
    found = plan(checkpoint, 96, tmp_path)
    for part in found.components:
        values = saved_values(build(checkpoint, part.name)).values()
        true = sum(each.numel() * (2 if each.is_floating_point() else each.element_size()) for each in values)
        assert part.storage in {Precision.FP16, Precision.BF16}
        assert part.weight_bytes == pytest.approx(true, rel=1e-3)
    resident = sum(part.weight_bytes for part in found.components)
    assert found.steady_bytes == (resident + working.CONTEXT_BYTES + working.WORKSPACE_BYTES + working.EMBEDDINGS_BYTES)


def save(path, tensors, *, metadata=None):
    """Write a safetensors file whose data is a hole: {name: (dtype, shape)}."""
    bits = {"F16": 16, "BF16": 16, "F32": 32, "F8_E4M3": 8}
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * bits[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def test_files_on_disk_beat_the_table(tmp_path):
    """A folder under the models' one is measured, variants and second names counted once; the table has no say."""
    folder = tmp_path / ROWS["flux-dev"].source
    unet = {"x_embedder.weight": ("F16", (96, 64)), "transformer_blocks.0.ff.weight": ("F16", (96, 400))}
    save(folder / "transformer" / "model-00001-of-00002.safetensors", dict(list(unet.items())[:1]))
    save(folder / "transformer" / "model-00002-of-00002.safetensors", dict(list(unet.items())[1:]))
    save(folder / "transformer" / "model.fp16.safetensors", unet)
    t5 = {"shared.weight": ("BF16", (100, 32)), "encoder.embed_tokens.weight": ("BF16", (100, 32))}
    save(folder / "text_encoder_2" / "model.safetensors", t5)
    save(folder / "vae" / "model.safetensors", {"decoder.conv_norm_out.weight": ("F32", (16,))})
    sizes = sizes_of(ROWS["flux-dev"], tmp_path)
    found = {size.name: size for size in sizes.components}
    assert found["transformer"].num_values == 96 * 64 + 96 * 400
    assert found["transformer"].num_block_values == 96 * 400
    assert (found["transformer"].width, found["transformer"].largest_tensor) == (96, 96 * 400)
    assert (found["text_encoder_2"].role, found["text_encoder_2"].num_values) == ("t5", 3200)
    assert found["vae"].width == 16
    assert str(folder) in sizes.origin


@pytest.mark.parametrize(
    ("model", "denoiser", "names"),
    [
        ("sd15", "unet", "model.diffusion_model.input_blocks.0.0.weight"),
        ("sdxl", "unet", "model.diffusion_model.input_blocks.0.0.weight"),
        ("flux-dev", "transformer", "double_blocks.0.img_mlp.0.weight"),
        ("flux-dev", "transformer", "model.diffusion_model.double_blocks.0.img_mlp.0.weight"),
        ("sd35-large", "transformer", "model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"),
    ],
)
def test_one_file_is_split_into_components(model, denoiser, names, tmp_path):
    """Each of the original layouts gives its denoiser; what the file lacks is taken as published, and said so."""
    path = save(tmp_path / "custom.safetensors", {names: ("F8_E4M3", (320, 4, 3, 3))})
    row = ROWS[model].model_copy(update={"source": str(path)})
    sizes = sizes_of(row, tmp_path)
    found = {size.name: size for size in sizes.components}
    assert found[denoiser].num_values == found[denoiser].num_block_values == 320 * 4 * 9
    assert found["vae"].num_values > 80_000_000
    assert "vae as published" in sizes.origin


def test_a_whole_single_file_needs_no_table(tmp_path):
    """The layout of sgm holds both text encoders, UNet and VAE: all four are the file's."""
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": ("F16", (8, 4, 3, 3)),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": ("F16", (50, 6)),
        "conditioner.embedders.1.model.token_embedding.weight": ("F16", (50, 7)),
        "first_stage_model.decoder.norm_out.weight": ("F16", (5,)),
    }
    path = save(tmp_path / "whole.safetensors", tensors, metadata={"format": "pt"})
    sizes = sizes_of(ROWS["sdxl"].model_copy(update={"source": path.name}), tmp_path)
    assert {size.name: (size.num_values, size.width) for size in sizes.components} == {
        "text_encoder": (300, 6),
        "text_encoder_2": (350, 7),
        "unet": (288, 8),
        "vae": (5, 5),
    }
    assert "published" not in sizes.origin


def test_a_file_without_a_denoiser_is_refused(tmp_path):
    """A LoRA in a model's place must not be planned as a model of published size."""
    path = save(tmp_path / "lora.safetensors", {"lora_unet_down.lora_up.weight": ("F16", (4, 4))})
    with pytest.raises(BadHeader, match=r"lora\.safetensors holds no UNet or transformer"):
        sizes_of(ROWS["sd15"].model_copy(update={"source": str(path)}), tmp_path)


def entry(**fields):
    """Return a header of one tensor `w` of four bytes, with fields changed."""
    return json.dumps({"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **fields}}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (b"\x01\x02", "cut short"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "does not fit"),
        ((50).to_bytes(8, "little") + b"{}", "does not fit"),
        ((2).to_bytes(8, "little") + b"{]", "no JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "no JSON"),
        (entry(), "tensor 'w' lies beyond its end"),
        (entry(data_offsets=[4, 0]), "beyond its end"),
        (entry(data_offsets=[0]), "lacks dtype, shape or data_offsets"),
        (entry(dtype=7), "lacks dtype"),
        (entry(shape=[-1]), "has the shape"),
        (entry(shape=[1.5]), "has the shape"),
        (entry(shape=[1] * 1000), "has the shape"),
        (entry(shape=[0], data_offsets=[0, 0])[:-1], "no JSON"),
        (entry(shape=[3], data_offsets=[0, 0]), "has 0 bytes for 3 F16"),
        (b'{"w": 5}', "lacks dtype"),
    ],
)
def test_a_bad_header_is_a_clear_error(content, reason, tmp_path):
    """Cut, huge, nested, contradicting: each is one error with file and fault, and never a crash or a big read."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(
        content if content[:1] not in b"{" or not content else len(content).to_bytes(8, "little") + content
    )
    with pytest.raises(BadHeader, match=reason) as caught:
        read_header(path)
    assert "bad.safetensors" in str(caught.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    """Whatever a file holds, reading its header gives tensors or BadHeader, nothing else."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes((len(content)).to_bytes(8, "little") + content)
    with contextlib.suppress(BadHeader):
        assert isinstance(read_header(path), dict)


def test_a_missing_file_is_a_clear_error(tmp_path):
    """The system's reason is passed on."""
    with pytest.raises(BadHeader, match=r"none\.safetensors cannot be read: No such file"):
        read_header(tmp_path / "none.safetensors")


# -- working memory


def full_size(checkpoint, component, dtype):
    """Return a full-size component on the meta device in a precision."""
    return copy.deepcopy(build(checkpoint, component)).to(dtype)


def empty(*shape, dtype):
    """Return a tensor of the meta device."""
    return torch.empty(*shape, device="meta", dtype=dtype)


def step_peak(checkpoint, *, width, height, rows, dtype):
    """Return what one forward of a full-size denoiser holds at most, and its number of text tokens."""
    component = "unet" if "unet" in component_names(checkpoint) else "transformer"
    denoiser = full_size(checkpoint, component, dtype)
    h, w = height // 8, width // 8
    inputs = {"return_dict": False, "timestep": torch.empty(rows, device="meta")}
    num_tokens = 77
    if component == "unet":
        inputs["sample"] = empty(rows, 4, h, w, dtype=dtype)
        inputs["encoder_hidden_states"] = empty(rows, 77, denoiser.config.cross_attention_dim, dtype=dtype)
        if checkpoint == "sdxl":
            pooled, ids = empty(rows, 1280, dtype=dtype), empty(rows, 6, dtype=dtype)
            inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    else:
        num_tokens = 512 if checkpoint.startswith("flux") else 333
        pooled = denoiser.config.pooled_projection_dim
        inputs["pooled_projections"] = empty(rows, pooled, dtype=dtype)
        inputs["encoder_hidden_states"] = empty(rows, num_tokens, 4096, dtype=dtype)
        inputs["hidden_states"] = empty(rows, 16, h, w, dtype=dtype)
        if checkpoint.startswith("flux"):
            patches = h // 2 * w // 2
            inputs["hidden_states"] = empty(rows, patches, 64, dtype=dtype)
            inputs["img_ids"], inputs["txt_ids"] = empty(patches, 3, dtype=dtype), empty(num_tokens, 3, dtype=dtype)
            if checkpoint == "flux-dev":
                inputs["guidance"] = torch.empty(rows, device="meta")
    with live_memory() as live:
        denoiser(**inputs)
    return live.peak_bytes, num_tokens


STEPS = [
    ("sd15", 768, 512, 4),
    pytest.param("sd21", 768, 768, 2, marks=pytest.mark.long),
    ("sdxl", 1024, 1024, 2),
    pytest.param("flux-schnell", 768, 512, 1, marks=pytest.mark.long),
    ("flux-dev", 1024, 1024, 2),
    ("sd35-medium", 1024, 1024, 2),
    pytest.param("sd35-large", 1024, 1024, 1, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("checkpoint", "width", "height", "rows"), STEPS)
def test_a_step_holds_what_the_formula_says(checkpoint, width, height, rows):
    """The formula bounds the traced peak of the full-size network's forward, and by no more than a seventh."""
    family = ROWS[checkpoint].family
    precision = working.FACTS[family].precision
    dtype = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]
    peak, num_tokens = step_peak(checkpoint, width=width, height=height, rows=rows, dtype=dtype)
    denoiser = next(size for size in PUBLISHED[checkpoint] if size.role == "denoiser")
    said = working.denoise_bytes(
        family, denoiser, precision, width=width, height=height, num_tokens=num_tokens, rows=rows
    )
    assert peak <= said <= 1.15 * peak


@pytest.mark.parametrize(
    ("checkpoint", "tile_px"),
    [
        ("sdxl", None),
        ("flux-dev", 512),
        pytest.param("sdxl", 512, marks=pytest.mark.long),
        pytest.param("flux-dev", None, marks=pytest.mark.long),
    ],
)
def test_decoding_holds_what_the_formula_says(checkpoint, tile_px):
    """Whole and in tiles: the formula bounds the traced peak of the VAE's decoder, by no more than a tenth."""
    vae = full_size(checkpoint, "vae", torch.bfloat16)
    if tile_px:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile_px, tile_px // 8
    with live_memory() as live:
        vae.decode(empty(1, vae.config.latent_channels, 96, 128, dtype=torch.bfloat16), return_dict=False)
    size = next(size for size in PUBLISHED[checkpoint] if size.role == "vae")
    said = working.decode_bytes(size, Precision.BF16, width=1024, height=768, tile_px=tile_px)
    assert live.peak_bytes <= said * 1.001
    assert said <= 1.1 * live.peak_bytes


@pytest.mark.parametrize(
    ("checkpoint", "component", "num_tokens"),
    [
        ("sd15", "text_encoder", 77),
        ("sdxl", "text_encoder_2", 77),
        ("flux-dev", "text_encoder_2", 512),
        ("flux-dev", "text_encoder_2", 256),
    ],
)
def test_encoding_holds_no_more_than_the_formula_says(checkpoint, component, num_tokens):
    """The formula bounds the traced peak of each text encoder, by no more than a half; T5's is what counts."""
    encoder = full_size(checkpoint, component, torch.bfloat16)
    with live_memory() as live:
        encoder(torch.zeros(1, num_tokens, dtype=torch.long, device="meta"))
    size = next(size for size in PUBLISHED[checkpoint] if size.name == component)
    said = working.encode_bytes(size, Precision.BF16, num_t5_tokens=num_tokens)
    assert live.peak_bytes <= said * 1.001
    assert said <= 1.5 * live.peak_bytes


# -- plans

WHOLE, EVICT, STREAM = "everything on the card", "text encoders evicted", "text encoders streamed"


@pytest.mark.parametrize(
    ("model", "vram_gib", "summary"),
    [
        ("sd15", 8, WHOLE),
        ("sdxl", 24, WHOLE),
        ("sdxl", 16, WHOLE),
        ("sdxl", 12, WHOLE),
        ("sdxl", 8, EVICT),
        ("flux-dev", 80, WHOLE),
        ("flux-dev", 48, WHOLE),
        ("flux-dev", 32, STREAM),
        ("flux-dev", 24, f"transformer fp8, {EVICT}"),
        ("flux-dev", 16, f"transformer fp8, {STREAM}"),
        ("flux-dev", 12, f"transformer nf4, {STREAM}"),
        ("flux-dev", 8, f"transformer streamed, {STREAM}"),
        ("sd35-large", 24, STREAM),
        ("sd35-medium", 24, WHOLE),
    ],
)
def test_each_card_gets_the_layout_that_its_size_calls_for(model, vram_gib, summary, tmp_path):
    """The layouts that people expect of common cards at native size."""
    assert plan(model, vram_gib, tmp_path).summary == summary


def test_precisions_are_those_that_do_not_overflow(tmp_path):
    """fp16 for SD, bf16 for Flux and SD 3.5; SDXL's own VAE gets bf16, the fp16-safe one of the catalog fp16."""
    assert {part.compute for part in plan("sd15", 24, tmp_path).components} == {Precision.FP16}
    for model in ("flux-dev", "sd35-large"):
        assert {part.compute for part in plan(model, 80, tmp_path).components} == {Precision.BF16}
    assert plan("sdxl", 24, tmp_path).component("vae").compute is Precision.FP16
    own = ROWS["sdxl"].model_copy(update={"vae": None})
    found = plan_for_row(own, sizes_of(own, tmp_path), vram_bytes=24 * GIB)
    assert found.component("vae").compute is Precision.BF16
    assert found.component("unet").compute is Precision.FP16


def test_fp8_narrows_the_blocks_alone(tmp_path):
    """Embedders, norms and the last layers keep 16 bits: the bytes are those of the blocks halved, nothing else."""
    found = plan("flux-dev", 24, tmp_path).component("transformer")
    size = next(size for size in PUBLISHED["flux-dev"] if size.name == "transformer")
    assert found.weight_bytes == size.num_block_values + 2 * (size.num_values - size.num_block_values)
    assert (found.storage, found.compute, found.is_lossy) == (Precision.FP8, Precision.BF16, True)


def test_lossy_plans_are_declared_and_can_be_forbidden(tmp_path):
    """A plan says what it changes; forbidden by the caller or the row, the next exact layout is taken instead."""
    lossy = plan("flux-dev", 24, tmp_path)
    assert lossy.is_lossy
    assert lossy.approximations == ("transformer in fp8",)
    exact = plan("flux-dev", 24, tmp_path, allow_lossy=False)
    assert not exact.is_lossy
    assert exact.component("transformer").where is Where.STREAMED
    row = ROWS["flux-dev"].model_copy(update={"allow_lossy": False})
    assert plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=24 * GIB) == exact
    assert plan("flux-dev", 80, tmp_path).approximations == ()


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.FP8_DYNAMIC, Precision.INT8_DYNAMIC, Precision.NF4])
def test_a_precision_that_the_row_asks_for_is_taken_and_no_other(precision, tmp_path):
    """However large the card is, and with smaller layouts where it is not; the plan says what it changes."""
    row = ROWS["flux-dev"].model_copy(update={"precision": precision.value})
    large, small = (plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=gib * GIB) for gib in (80, 20))
    for found in (large, small):
        assert found.component("transformer").storage is precision
        assert found.approximations == (f"transformer in {precision}",)
    assert large.component("text_encoder_2").where is Where.RESIDENT
    assert precision is Precision.NF4 or small.component("text_encoder_2").where is not Where.RESIDENT
    assert (
        large.component("transformer").weight_bytes
        < plan("flux-dev", 80, tmp_path).component("transformer").weight_bytes
    )
    exact = plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=80 * GIB, allow_lossy=False)
    assert exact == plan("flux-dev", 80, tmp_path, allow_lossy=False)
    assert not plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=100 * GIB, device_kind="cpu").is_lossy
    with pytest.raises(NoPlan, match=f"smallest plan: transformer {precision}"):
        plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=4 * GIB)


def test_nobody_computes_in_eight_bits_unasked(tmp_path):
    """Whatever the card, a row without a precision gets none that changes activations."""
    for name in ROWS:
        for vram_gib in CARDS_GIB:
            with contextlib.suppress(NoPlan):
                found = plan(name, vram_gib, tmp_path)
                assert not {part.storage for part in found.components} & DYNAMIC


def test_a_worker_without_bitsandbytes_gets_no_four_bits(tmp_path):
    """The next layout is taken instead, which on 12 GiB streams the transformer."""
    assert plan("flux-dev", 12, tmp_path).component("transformer").storage is Precision.NF4
    found = plan("flux-dev", 12, tmp_path, can_load_4bit=False)
    assert found.component("transformer").where is Where.STREAMED
    assert not found.is_lossy


def test_tiles_are_declared(tmp_path):
    """SDXL at 1536 x 1536 on 8 GiB decodes in tiles, which the plan names though no weight is lossy."""
    found = plan("sdxl", 8, tmp_path, width=1536, height=1536)
    assert found.vae_tile_px == 512
    assert not found.is_lossy
    assert found.approximations == ("vae in tiles of 512 px",)


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path):
    """Model, what it needs, what there is, and the smallest plan tried."""
    with pytest.raises(NoPlan, match=r"flux-dev does not fit: an image of 1024x1024 .* you have 2\.0 GiB") as caught:
        plan("flux-dev", 2, tmp_path)
    assert "smallest plan: transformer streamed" in str(caught.value)
    assert caught.value.vram_bytes == 2 * GIB < caught.value.needed_bytes
    assert plan("flux-dev", caught.value.needed_bytes / GIB + 0.01, tmp_path).component("transformer")


def test_extra_weights_count(tmp_path):
    """A ControlNet or LoRAs beside the model push it to a smaller layout."""
    assert plan("sdxl", 12, tmp_path).summary == WHOLE
    assert plan("sdxl", 12, tmp_path, extra_bytes=4 * GIB).summary == EVICT


def test_a_guided_seat_takes_two_rows(tmp_path):
    """Guidance doubles what a step holds; Flux takes its scale as an input and never doubles."""
    sizes = dict(plan("sdxl", 24, tmp_path, guided=True).phases[1].parts)
    alone = dict(plan("sdxl", 24, tmp_path, guided=False).phases[1].parts)
    assert sizes["working"] == pytest.approx(2 * alone["working"], rel=1e-6)
    assert plan("flux-dev", 24, tmp_path, guided=True) == plan("flux-dev", 24, tmp_path, guided=False)


def test_a_cpu_holds_everything_in_float32(tmp_path):
    """No layers of CUDA, one layout, and a clear end when RAM is too small."""
    found = plan("sd15", 16, tmp_path, device_kind="cpu")
    assert {(part.storage, part.where) for part in found.components} == {(Precision.FP32, Where.RESIDENT)}
    assert "CUDA context" not in dict(found.phases[0].parts)
    with pytest.raises(NoPlan, match="everything on the card"):
        plan("flux-dev", 32, tmp_path, device_kind="cpu")


MODELS = st.sampled_from(sorted(PUBLISHED))


def rank(found):
    """Return how far down the ladder a plan stands: denoiser first, then text encoders, then the VAE."""
    denoiser = next(part for part in found.components if part.name in {"unet", "transformer"})
    kept = [denoiser.compute, Precision.FP8, Precision.NF4].index(denoiser.storage)
    text = list(Where).index(found.component("text_encoder").where)
    return (denoiser.where is Where.STREAMED, kept, text, found.vae_tile_px is not None)


@given(
    model=MODELS,
    vram_gib=st.tuples(st.floats(1, 50), st.floats(0, 50)),
    side=st.sampled_from([512, 768, 1024, 1536]),
    batch=st.integers(1, 8),
)
@settings(max_examples=40)
def test_plans_fit_and_more_memory_never_stands_lower(tmp_path_factory, model, vram_gib, side, batch):
    """A plan leaves its margin in every phase up to `max_batch` seats; a larger card never gets a lower rung."""
    folder = tmp_path_factory.getbasetemp() / "none"
    few_gib, more_gib = vram_gib
    try:
        small = plan(model, few_gib, folder, batch=batch, width=side, height=side)
    except NoPlan:
        return
    assert all(small.vram_bytes - phase.peak_bytes >= small.margin_bytes for phase in small.phases)
    assert small.max_batch >= batch
    full = plan(model, few_gib, folder, batch=small.max_batch, width=side, height=side)
    assert full.summary == small.summary
    assert rank(plan(model, few_gib + more_gib, folder, batch=batch, width=side, height=side)) <= rank(small)


@pytest.mark.parametrize("field", ["width", "height", "batch"])
def test_nonsense_is_refused(field, tmp_path):
    """A size of less than one is the caller's mistake."""
    with pytest.raises(ValueError, match="positive"):
        plan("sd15", 8, tmp_path, **{field: -1})


def test_nf4_bytes_are_bitsandbytes_own():
    """Half a byte a value, a byte of scale for 64, four bytes for 256 scales: the double-quantised format."""
    values = 64 * 256
    assert BYTES_PER_VALUE[Precision.NF4] * values == values / 2 + values / 64 + 4
