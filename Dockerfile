# Two images from one file: `api`, which has no torch, and `worker`, which has torch and the model that ships.
#
#   docker build --target api -t diffusion-farm-api .
#   docker build --target worker -t diffusion-farm-worker .
#
# Layers go from what changes rarely to what changes with every commit: base, third-party packages, our own code.

FROM python:3.11.14-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN useradd --system --uid 10001 --create-home --home-dir /home/farm farm
WORKDIR /app
STOPSIGNAL SIGTERM


# One file of requirements per extra. They are copied on by their content, so that a change in pyproject.toml
# that touches no dependency (a lint rule, a version) installs nothing anew.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml /source/
RUN python -c "import pathlib, tomllib; \
project = tomllib.loads(pathlib.Path('/source/pyproject.toml').read_text(encoding='utf-8'))['project']; \
extras = project['optional-dependencies']; \
[pathlib.Path(f'{name}.txt').write_text('\n'.join(project['dependencies'] + extras[name]) + '\n') for name in extras]"


# Our own code as one wheel: the images get no build tools.
FROM base AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY farm/ farm/
COPY api/ api/
COPY worker/ worker/
COPY cli/ cli/
COPY prompts/ prompts/
COPY training/ training/
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /built .


FROM base AS api
COPY constraints.txt /requirements/
COPY --from=requirements /requirements/api.txt /requirements/tracing.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c /requirements/constraints.txt -r /requirements/api.txt -r /requirements/tracing.txt
RUN --mount=type=bind,from=wheel,source=/built,target=/built pip install --no-deps /built/*.whl
USER farm
EXPOSE 8080
CMD ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8080"]


FROM base AS worker
# Where torch itself comes from. Empty: the usual index, whose Linux wheels bring CUDA along. For a machine without a
# GPU name the CPU index that PyTorch's install page gives: the image is then some gigabytes smaller.
ARG TORCH_INDEX=""
# Further extras of pyproject.toml, separated by spaces: `gpu` adds xformers.
ARG EXTRAS=""
# torch.compile has the launchers of its kernels compiled when they are first used; without it models run uncompiled.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /requirements/
# Torch alone and first: the largest layer, and the one that only a change of its pin should rebuild.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c /requirements/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX" --no-deps} torch
COPY --from=requirements /requirements/ /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    for extra in worker tracing $EXTRAS; do set -- "$@" -r "/requirements/$extra.txt"; done; \
    pip install -c /requirements/constraints.txt "$@"
# Weights from the hub go to a volume. Made here, because a new volume takes its owner from the image.
RUN install -d -o farm -g farm /weights
ENV HF_HOME=/weights \
    FARM_MODELS_DIR=/app/models \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY models/scenes/ models/scenes/
RUN --mount=type=bind,from=wheel,source=/built,target=/built pip install --no-deps /built/*.whl
USER farm
CMD ["python", "-m", "worker.launcher"]
