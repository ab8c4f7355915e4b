"""Every setting of the farm, read once from `FARM_*` environment variables at the composition root.

Settings are frozen and passed down; nothing below the roots (`api.app`, `worker.app`, `cli.main`) reads the
environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from farm.catalog.rows import LossyPrecision

_THROUGH_API: Final = "api"


class Settings(BaseSettings):
    """The farm's settings; the environment variable of `redis_url` is `FARM_REDIS_URL`, and so on.

    A variable that is set to nothing counts as not set: that is how compose files pass on what is missing.
    """

    model_config = SettingsConfigDict(env_prefix="FARM_", env_ignore_empty=True, frozen=True, extra="ignore")

    # -- where things are
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis (or Valkey): ledger and Celery broker.")
    s3_endpoint: str | None = Field(None, description="S3 endpoint; empty means AWS.")
    s3_public_endpoint: str | None = Field(
        None,
        description="The S3 endpoint as clients reach it, where signed links lead; by default s3_endpoint. `api`: they"
        " lead through the API, and clients need not reach S3.",
    )
    public_url: str | None = Field(
        None,
        description="The API's address in links that lead through it; by default what each request was addressed to.",
    )
    s3_bucket: str = Field("farm", description="Bucket for images; created when missing.")
    s3_region: str = "us-east-1"
    s3_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds that the storage may stay silent before a request is made again; work goes on within two"
        " leases of an outage's end if this is less than that.",
    )
    s3_access_key: str | None = None
    s3_secret_key: str | None = None
    url_expiry_s: int = Field(3600, ge=1, le=604_800, description="Seconds a presigned URL stays valid.")
    models_dir: Path = Field(Path("models"), description="Folder that relative model sources start from.")
    catalog_file: Path | None = Field(None, description="TOML file with further catalog rows.")
    hf_token: SecretStr | None = Field(
        None, description="Token for the hub of models; without one HF_TOKEN counts, as it does for all of its tools."
    )

    # -- what a client may ask for
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    max_prompts: int = Field(10_000, ge=1, description="Distinct prompts in one job.")
    max_images: int = Field(10_000_000, ge=1, description="Images in one job.")
    max_upload_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="Of one picture, uploaded or fetched.")
    max_upload_pixels: int = Field(8192 * 8192, ge=1, description="Of one picture, uploaded or fetched.")
    input_hosts: str = Field(
        "",
        description="Comma-separated hosts that pictures may be fetched from by URL, `host` or `host:port`; none.",
    )
    wildcards_dir: Path | None = Field(
        None, description="Folder of .txt files that `__name__` in templates stands for, beside those that ship."
    )
    max_queued_images: int = Field(50_000_000, ge=1, description="Images waiting in the whole farm.")
    trust_tenant_header: bool = Field(
        default=False, description="Whether a gateway that has authenticated the client sets the header Farm-Tenant."
    )

    # -- who may enter
    auth: Literal["open", "keys"] = Field(
        "open", description="`open`: whoever reaches the API is its operator. `keys`: nobody enters without an API key."
    )
    operator_key: SecretStr | None = Field(
        None, description="A key that is the operator's without Redis: with it the others are made."
    )
    metrics_key: SecretStr | None = Field(None, description="A key that opens /metrics alone, for Prometheus.")
    allowed_hosts: str = Field(
        "",
        description="Comma-separated names by which an open API may be called, beyond addresses and local names.",
    )
    cors_origins: str = Field(
        "", description="Comma-separated origins whose pages may use the API, such as https://studio.example; none."
    )

    # -- leases and retries
    lease_s: float = Field(10.0, gt=0, description="How long a worker's right to a unit lasts unrenewed.")
    max_attempts: int = Field(5, ge=1, description="Failed or lost attempts before a unit is given up.")
    idempotency_expiry_s: int = Field(7 * 24 * 3600, ge=60)
    keep_jobs_s: float = Field(
        7 * 24 * 3600, ge=0, description="Seconds that Redis keeps a job after its end; its manifest stays in S3."
    )
    model_wait_s: float = Field(
        60.0, gt=0, description="Seconds that work for a model may wait while workers are busy with other models."
    )

    # -- the worker
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="`cuda` refuses to run without a GPU.")
    worker_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._:-]{1,128}$",
        description="Node name of this worker, unique in the farm; by default host and GPU.",
    )
    worker_models: str = Field("", description="Comma-separated catalog names to serve; empty means all.")
    max_batch: int = Field(8, ge=1, le=64, description="Seats of a lane: images that share one forward pass.")
    measure_batch: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether lanes' seats are measured, up to FARM_MAX_BATCH: `auto` does so on a GPU.",
    )
    precision: LossyPrecision | None = Field(
        None,
        description="What denoisers are kept in on a GPU, `fp8`, `nf4`, `fp8-dynamic` or `int8-dynamic`, where the"
        " catalog's row says nothing; by default 16 bits where they fit.",
    )
    tuning_dir: Path | None = Field(
        None, description="Folder for what is measured on this machine's cards; by default .tuning in FARM_MODELS_DIR."
    )
    optimise: str = Field(
        "auto",
        description="What makes steps fast: `auto` is what the card and each model have a use for, `off` nothing, or a "
        "comma-separated list of compile, graphs, fused, attention, fp16-accumulation, sage.",
    )
    max_resident_models: int = Field(
        0, ge=0, description="Models kept on the device at once, at most; 0 for as many as its memory holds."
    )
    ram_share: float = Field(
        0.5, gt=0, le=1, description="Share of this machine's RAM for the weights of all of its workers together."
    )
    recycle_rss_gib: float = Field(
        0.0,
        ge=0,
        description="A worker that holds more RAM after unloading a model drains, for a new process; 0 for never.",
    )
    torch_threads: int = Field(0, ge=0, description="CPU threads for torch; 0 leaves it to torch.")
    previews: bool = Field(
        default=True, description="Whether workers show images while they are made, to clients that watch their jobs."
    )
    max_undelivered: int = Field(16, ge=1, description="Finished images that wait in memory for storage.")

    # -- webhooks
    webhook_secret: SecretStr | None = Field(
        None, description="Signs webhooks: `whsec_` and base64; while it is changed two, separated by a blank."
    )
    webhook_allow_private: str = Field(
        "",
        description="Comma-separated hosts, addresses and networks beyond the public ones that webhooks may go to; "
        "`true` is all.",
    )

    # -- the A1111 API
    a1111_model: str | None = Field(
        None,
        description="Model of clients that have chosen none; by default the first of the catalog that workers serve.",
    )
    styles_file: Path | None = Field(
        None, description="CSV file of prompt styles, as A1111 writes it: name, prompt, negative_prompt."
    )

    # -- the OpenAI API
    openai_model: str | None = Field(
        None,
        description="Model of requests that name none, or one of OpenAI's (gpt-image-1, dall-e-3); by default the first"
        " of the catalog that workers serve, and OpenAI's are unknown.",
    )
    openai_wait_s: float = Field(
        540.0, gt=0, description="Seconds that /v1/images keeps a client waiting; OpenAI's SDKs give up after 600."
    )
    max_file_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="Of one file sent to /v1/files.")

    # -- seeing the whole
    gpu_hour_price: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="What an hour of one GPU costs, in any currency; tells prices."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Where traces go, the base URL of an OpenTelemetry collector (OTLP over HTTP); by default what"
        " OTEL_EXPORTER_OTLP_ENDPOINT says, and nowhere without it.",
    )

    # -- the API
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def links_through_api(self) -> bool:
        """Whether signed links lead through the API, not to S3 itself."""
        return self.s3_public_endpoint == _THROUGH_API

    @field_validator("s3_public_endpoint", "public_url")
    @classmethod
    def _is_base(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse what no link can begin with; a closing slash goes."""
        if value is None or (value == _THROUGH_API and info.field_name == "s3_public_endpoint"):
            return value
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            also = " or `api`" if info.field_name == "s3_public_endpoint" else ""
            raise ValueError(f"{value!r} is no URL that links can begin with, such as https://farm.example{also}")
        return value.rstrip("/")
