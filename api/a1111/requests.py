"""What A1111's clients send to txt2img and img2img: fields, defaults and bounds. What they mean is in mapping.py."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from api.a1111.bodies import Lenient
from farm.requests import Guidance, Seed, Size, Steps

MAX_IMAGES: Final = 64
"""Images of one request: their files are held in memory until the answer is sent."""

Text = Annotated[str, StringConstraints(max_length=8_000)]
Name = Annotated[str, StringConstraints(max_length=256)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Count = Annotated[int, Field(ge=1, le=MAX_IMAGES)]

_IGNORED: Final = "Makes no difference here."
_NEUTRAL: Final = "Refused unless it is as good as absent: the farm has nothing like it."


class Generation(Lenient):
    """What both have. The tables in docs/a1111.md tell what is honoured, what refused and what makes no difference."""

    prompt: Text = Field("", description="`<lora:name:weight>`, weights and BREAK as docs/prompts.md says.")
    negative_prompt: Text = ""
    styles: list[Name] = Field([], max_length=64, description="Names from GET /sdapi/v1/prompt-styles.")
    seed: Seed = Field(-1, description="Image i has seed + i; -1: drawn, and told in `info`.")
    batch_size: Count = Field(1, description=f"Times n_iter: images, at most {MAX_IMAGES}.")
    n_iter: Count = 1
    steps: Steps = Field(50, description="Without it: A1111's 50 where the model is guided, else the model's own.")
    cfg_scale: Guidance = Field(7.0, description="Without it: A1111's 7 where the model is guided, else its own.")
    distilled_cfg_scale: Guidance | None = Field(
        None,
        description="Of models that take guidance as an input (Flux), as Forge has it; cfg_scale is then true CFG.",
    )
    width: Size = Field(512, description="Without it: A1111's 512 where that is native to the model, else its own.")
    height: Size = 512
    sampler_name: Name | None = Field(
        None, description="From GET /sdapi/v1/samplers, with a schedule at its end or not."
    )
    sampler_index: Name = Field("Euler", description="The same, where sampler_name is absent.")
    scheduler: Name | None = Field(None, description="From GET /sdapi/v1/schedulers; Automatic is what A1111 takes.")
    override_settings: dict[str, Any] = Field(
        {}, max_length=512, description="Options for this request: sd_model_checkpoint, CLIP_stop_at_last_layers, …"
    )
    alwayson_scripts: dict[str, Any] = Field(
        {}, max_length=64, description="ControlNet units; other scripts are refused unless they are off."
    )
    send_images: bool = Field(default=True, description="Whether `images` holds them.")
    force_task_id: Name | None = Field(None, description="What POST /internal/progress calls this request.")

    override_settings_restore_afterwards: bool = Field(default=True, description=_IGNORED)
    save_images: bool = Field(default=False, description=_IGNORED + " All images are in the farm's bucket.")
    do_not_save_samples: bool = Field(default=False, description=_IGNORED)
    do_not_save_grid: bool = Field(default=False, description=_IGNORED)
    subseed: Whole = Field(-1, description=_IGNORED + " It would with a subseed_strength.")
    s_churn: Number = Field(0, description=_NEUTRAL)
    s_tmin: Number = Field(0, description=_IGNORED + " It would with s_churn.")
    s_tmax: Number | None = Field(None, description=_IGNORED + " It would with s_churn.")
    script_args: list[Any] = Field([], max_length=1024, description=_IGNORED + " It would with a script_name.")

    eta: Number | None = Field(None, description="Refused unless it is 1, or 0 for a sampler that adds no noise.")
    subseed_strength: Number = Field(0, description=_NEUTRAL)
    seed_resize_from_h: Whole = Field(-1, description=_NEUTRAL)
    seed_resize_from_w: Whole = Field(-1, description=_NEUTRAL)
    s_noise: Number = Field(1, description=_NEUTRAL)
    s_min_uncond: Number = Field(0, description=_NEUTRAL)
    restore_faces: bool = Field(default=False, description=_NEUTRAL)
    tiling: bool = Field(default=False, description=_NEUTRAL)
    refiner_checkpoint: Name | None = Field(None, description=_NEUTRAL)
    refiner_switch_at: Number | None = Field(None, description=_IGNORED + " It would with a refiner_checkpoint.")
    disable_extra_networks: bool = Field(default=False, description=_NEUTRAL)
    script_name: Name | None = Field(None, description=_NEUTRAL)
    infotext: Text | None = Field(None, description=_NEUTRAL)

    @property
    def num_images(self) -> int:
        """How many images are asked for."""
        return self.batch_size * self.n_iter


class Txt2Img(Generation):
    """Body of POST /sdapi/v1/txt2img."""

    enable_hr: bool = Field(default=False, description="A second pass at a larger size (hires fix).")
    hr_scale: Number = Field(2.0, description="Of width and height; rounded to what the model renders.")
    hr_upscaler: Name | None = Field(None, description="`Latent` or `Lanczos`.")
    hr_second_pass_steps: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="0: as the first pass.")
    hr_resize_x: Annotated[int, Field(ge=0, le=16_384)] = Field(0, description="Instead of hr_scale.")
    hr_resize_y: Annotated[int, Field(ge=0, le=16_384)] = 0
    denoising_strength: Share = Field(0.75, description="Of the second pass.")
    firstphase_width: Whole = Field(0, description=_NEUTRAL)
    firstphase_height: Whole = Field(0, description=_NEUTRAL)
    hr_checkpoint_name: Name | None = Field(None, description=_NEUTRAL)
    hr_sampler_name: Name | None = Field(None, description=_NEUTRAL)
    hr_scheduler: Name | None = Field(None, description=_NEUTRAL)
    hr_prompt: Text = Field("", description=_NEUTRAL)
    hr_negative_prompt: Text = Field("", description=_NEUTRAL)
    hr_cfg: Number | None = Field(None, description=_NEUTRAL)


class Img2Img(Generation):
    """Body of POST /sdapi/v1/img2img."""

    init_images: list[str] = Field(
        [], max_length=MAX_IMAGES, description="In base64, with `data:image/…;base64,` before it or not; required."
    )
    resize_mode: Annotated[int, Field(ge=0, le=3)] = Field(
        0, description="0 just resize, 1 crop and resize, 2 resize and fill; 3, by latents, is refused."
    )
    denoising_strength: Share = 0.75
    mask: str | None = Field(None, description="White is painted anew; in base64, as large as the picture.")
    mask_blur: Annotated[float, Field(ge=0, le=64)] = 4
    mask_blur_x: Annotated[float, Field(ge=0, le=64)] | None = Field(None, description="Instead of mask_blur.")
    mask_blur_y: Annotated[float, Field(ge=0, le=64)] | None = Field(None, description="Instead of mask_blur.")
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] = Field(
        0,
        description="What lies under the mask at first: 0 its surroundings' colours, 1 the picture.",
    )
    inpaint_full_res: bool = Field(default=True, description="Render the mask's surroundings alone, at full size.")
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=16_384)] = Field(0, description="Pixels around it.")
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = 0
    include_init_images: bool = Field(default=False, description="Whether `parameters` repeats the pictures.")
    image_cfg_scale: Number | None = Field(None, description=_IGNORED + " It is for InstructPix2Pix models.")
    initial_noise_multiplier: Number = Field(1, description=_NEUTRAL)
    latent_mask: str | None = Field(None, description=_NEUTRAL)
    mask_round: bool = Field(default=True, description=_NEUTRAL)
