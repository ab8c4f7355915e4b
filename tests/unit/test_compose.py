"""What docker-compose.yml, Dockerfile and .env.example promise, as far as no engine is needed to tell.

docs/compose.md says how they were tried with one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from farm.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE_TEXT: Final = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENV_EXAMPLE: Final = (ROOT / ".env.example").read_text(encoding="utf-8")
DOCKERIGNORE: Final = (ROOT / ".dockerignore").read_text(encoding="utf-8")
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

COMPOSE: Final[dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
OURS: Final = ("api", "worker", "worker-cpu")
WORKERS: Final = ("worker", "worker-cpu")

# ${NAME}, ${NAME:-default}, ${NAME:?message}; `$$` is a dollar sign of the shell in the container.
INTERPOLATION: Final = re.compile(r"(?<!\$)\$\{(?P<name>[A-Z_0-9]+)(?P<rest>[^}]*)\}")
SECRETS: Final = ("FARM_S3_ACCESS_KEY", "FARM_S3_SECRET_KEY")

every_service = pytest.mark.parametrize("name", sorted(SERVICES))
every_service_of_ours = pytest.mark.parametrize("name", OURS)
every_worker = pytest.mark.parametrize("name", WORKERS)


def environment(name: str) -> dict[str, str | None]:
    """Return a service's environment as written."""
    variables: dict[str, str | None] = SERVICES[name].get("environment", {})
    return variables


def env_example() -> dict[str, tuple[str, bool]]:
    """Return the variables of .env.example: value, and whether the line is live rather than commented."""
    pairs = re.findall(r"^(# )?([A-Z][A-Z_0-9]*)=(.*)$", ENV_EXAMPLE, flags=re.MULTILINE)
    return {name: (value, not comment) for comment, name, value in pairs}


def dockerfile_stages() -> dict[str, str]:
    """Return the text of each build stage, by name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def instructions(text: str, keyword: str) -> list[str]:
    """Return the arguments of every instruction of this keyword."""
    return re.findall(rf"^{keyword} (.*)$", text, flags=re.MULTILINE)


# -- what is started


def test_the_services_are_those_of_the_design() -> None:
    """Redis, S3, the API and two kinds of worker, each by its profile; Prometheus and Grafana where they are wanted."""
    assert set(SERVICES) == {"redis", "s3", "api", "worker", "worker-cpu", "prometheus", "grafana"}
    assert {name: s["profiles"] for name, s in SERVICES.items() if "profiles" in s} == {
        "worker": ["gpu"],
        "worker-cpu": ["cpu"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_a_plain_up_starts_gpu_workers() -> None:
    """Given a copy of .env.example, `docker compose up` means the profile gpu."""
    assert env_example()["COMPOSE_PROFILES"] == ("gpu", True)


def test_gpu_workers_get_every_gpu_and_cpu_workers_none() -> None:
    """The GPU worker reserves all devices and refuses to run without; the other asks for none."""
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["count"] == "all"
    assert {"gpu", "compute", "utility"} <= set(device["capabilities"])
    assert environment("worker")["FARM_DEVICE"] == "cuda"
    assert "deploy" not in SERVICES["worker-cpu"]
    assert environment("worker-cpu")["FARM_DEVICE"] == "cpu"


@every_service
def test_every_image_is_pinned(name: str) -> None:
    """Others' images carry a full version, ours the version of the project."""
    repository, _, tag = SERVICES[name]["image"].rpartition(":")
    if "build" in SERVICES[name]:
        assert repository.startswith("diffusion-farm-")
        assert tag.removesuffix("-cpu") == PROJECT["version"]
    else:
        assert re.match(r"v?\d+\.\d+", tag)


def test_our_images_differ() -> None:
    """Two services that build differently never share a tag."""
    images = [SERVICES[name]["image"] for name in OURS]
    assert len(set(images)) == len(images)


@every_service_of_ours
def test_what_we_build_exists(name: str) -> None:
    """A service's build target is a stage of the Dockerfile, its arguments are declared there."""
    build = SERVICES[name]["build"]
    stage = dockerfile_stages()[build["target"]]
    declared = {argument.partition("=")[0] for argument in instructions(stage, "ARG")}
    assert set(build.get("args", {})) <= declared


# -- health, order, life and death


@every_service
def test_every_service_has_a_health_check(name: str) -> None:
    """With a command, and bounds on each try and on their number."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@every_worker
def test_the_workers_health_check_is_python_that_compiles(name: str) -> None:
    """It is written inside YAML, where no linter looks."""
    kind, python, flag, source = SERVICES[name]["healthcheck"]["test"]
    assert (kind, python, flag) == ("CMD", "python", "-c")
    compile(source, "healthcheck", "exec")


def test_the_apis_health_is_its_readiness() -> None:
    """`up --wait` returns when a job can be accepted, not merely when a process lives."""
    assert "/readyz" in SERVICES["api"]["healthcheck"]["test"][-1]


@every_service_of_ours
def test_ours_start_after_redis_and_s3_are_healthy(name: str) -> None:
    """Started is not enough: S3 and Redis load their data first."""
    assert SERVICES[name]["depends_on"] == {
        "redis": {"condition": "service_healthy"},
        "s3": {"condition": "service_healthy"},
    }


@every_service
def test_every_service_comes_back_and_has_time_to_stop(name: str) -> None:
    """A dead service is restarted; one that is stopped gets longer than the engine's ten seconds to settle."""
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= 20


def test_workers_may_drain_longer_than_their_launcher_waits() -> None:
    """The engine's SIGKILL comes after the launcher's own."""
    launcher = (ROOT / "worker" / "launcher.py").read_text(encoding="utf-8")
    found = re.search(r"^_GRACE_S: Final = ([\d.]+)$", launcher, flags=re.MULTILINE)
    assert found is not None
    for name in WORKERS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > float(found[1]) + 5


# -- data


def test_data_and_weights_live_in_named_volumes() -> None:
    """So that `down` and a new image keep jobs, images and downloads."""
    assert set(COMPOSE["volumes"]) == {"redis-data", "s3-data", "weights", "prometheus-data", "grafana-data"}
    assert "prometheus-data:/prometheus" in SERVICES["prometheus"]["volumes"]
    assert "grafana-data:/var/lib/grafana" in SERVICES["grafana"]["volumes"]
    assert SERVICES["redis"]["volumes"] == ["redis-data:/data"]
    assert SERVICES["s3"]["volumes"] == ["s3-data:/data"]
    for name in WORKERS:
        assert "weights:/weights" in SERVICES[name]["volumes"]


def test_redis_keeps_what_it_has_accepted() -> None:
    """Every write is on disk before it is answered, and nothing is evicted."""
    options = shlex.join(SERVICES["redis"]["command"])
    for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert option in options


def test_weights_download_into_their_volume() -> None:
    """The worker image points the hub's cache at the mount and makes the folder its own user's."""
    stage = dockerfile_stages()["worker"]
    assert "HF_HOME=/weights" in stage
    assert re.search(r"install -d -o (\w+) -g \1 /weights", stage)


def test_the_model_that_ships_is_in_the_worker_image() -> None:
    """And no other weights: those of a user may lie beside it."""
    assert "models/scenes/ models/scenes/" in instructions(dockerfile_stages()["worker"], "COPY")
    assert "!models/scenes/" in DOCKERIGNORE.splitlines()
    assert "!models/" not in DOCKERIGNORE.splitlines()


# -- variables and secrets


@every_service
def test_every_farm_variable_is_a_setting(name: str) -> None:
    """A misspelt FARM_ variable would be ignored without a word."""
    fields = {f"FARM_{field.upper()}" for field in Settings.model_fields}
    given = {variable for variable in environment(name) if variable.startswith("FARM_")}
    assert given <= fields


@every_service_of_ours
def test_ours_are_told_where_redis_and_s3_are(name: str) -> None:
    """By service name, with keys, and with the address that presigned URLs must carry."""
    variables = environment(name)
    assert variables["FARM_REDIS_URL"] == "redis://redis:6379/0"
    assert variables["FARM_S3_ENDPOINT"] == "http://s3:8333"
    assert variables["FARM_S3_PUBLIC_ENDPOINT"] == "${FARM_S3_PUBLIC_ENDPOINT:-api}"
    for secret in SECRETS:
        assert str(variables[secret]).startswith(f"${{{secret}:?")


def test_api_and_workers_agree_on_what_they_must() -> None:
    """What both are given, they are given alike."""
    for name in WORKERS:
        shared = environment("api").keys() & environment(name).keys()
        assert {v: environment("api")[v] for v in shared} == {v: environment(name)[v] for v in shared}
        assert "FARM_CATALOG_FILE" in shared


def test_env_example_and_compose_name_the_same_variables() -> None:
    """Whatever compose reads is explained in .env.example, and nothing there is without effect."""
    interpolated = {match["name"] for match in INTERPOLATION.finditer(COMPOSE_TEXT)}
    passed_on = {v for name in SERVICES for v, value in environment(name).items() if value is None}
    assert set(env_example()) - {"COMPOSE_PROFILES"} == interpolated | passed_on


def test_defaults_in_env_example_are_those_of_the_settings() -> None:
    """A commented FARM_ line shows the default that holds without it."""
    examples = {"FARM_CATALOG_FILE", "FARM_INPUT_HOSTS", "FARM_WORKER_MODELS", "FARM_S3_PUBLIC_ENDPOINT"}
    examples |= {"FARM_WEBHOOK_SECRET", "FARM_WEBHOOK_ALLOW_PRIVATE", "FARM_PRECISION"}
    examples |= {"FARM_GPU_HOUR_PRICE", "FARM_METRICS_KEY", "FARM_OTLP_ENDPOINT", "FARM_OPENAI_MODEL"}
    examples |= {"FARM_A1111_MODEL", "FARM_STYLES_FILE"}
    examples |= {"FARM_ALLOWED_HOSTS", "FARM_CORS_ORIGINS", "FARM_PUBLIC_URL", "FARM_WILDCARDS_DIR"}
    examples |= {"FARM_AUTH"}  # compose has a default of its own
    shown = {name for name, (_, live) in env_example().items() if name.startswith("FARM_") and not live}
    for name in shown - examples:
        default = Settings.model_fields[name.removeprefix("FARM_").lower()].default
        expected = f"{default:g}" if isinstance(default, float) else str(default).lower()
        assert env_example()[name][0].lower() == expected


def test_secrets_have_no_default() -> None:
    """Without .env compose stops and says what to do; the only example secret stands in .env.example."""
    for match in INTERPOLATION.finditer(COMPOSE_TEXT):
        if match["name"] in SECRETS:
            assert match["rest"].startswith(":?")
            assert ".env.example" in match["rest"]
    for secret in SECRETS:
        value, live = env_example()[secret]
        assert live
    assert value not in COMPOSE_TEXT + DOCKERFILE
    for name in SERVICES:
        for variable, value_or_none in environment(name).items():
            if re.search(r"KEY|SECRET|TOKEN|PASSWORD", variable):
                assert value_or_none is None or INTERPOLATION.fullmatch(value_or_none)


def test_the_api_asks_for_keys_and_there_is_none_that_others_know() -> None:
    """Without an operator's key of one's own compose does not start; the example has none to leave as it is."""
    variables = environment("api")
    assert variables["FARM_AUTH"] == "${FARM_AUTH:-keys}"
    assert str(variables["FARM_OPERATOR_KEY"]).startswith("${FARM_OPERATOR_KEY:?")
    assert env_example()["FARM_OPERATOR_KEY"] == ("", True)
    assert env_example()["FARM_AUTH"] == ("keys", False)
    for name in WORKERS:
        assert "FARM_OPERATOR_KEY" not in environment(name)


def test_ports_are_published_on_loopback_unless_told() -> None:
    """Redis and Prometheus, which have no login, are not published at all."""
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}
    assert published == {
        "api": ["${PUBLISH_API:-127.0.0.1:8080}:8080"],
        "s3": ["${PUBLISH_S3:-127.0.0.1:8333}:8333"],
        "grafana": ["${PUBLISH_GRAFANA:-127.0.0.1:3000}:3000"],
    }


# -- monitoring


def test_what_monitoring_mounts_is_there() -> None:
    """Docker would make a folder of a file that is missing, and Prometheus would not start."""
    for name in ("prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert volume.endswith(":ro")


def test_prometheus_reads_the_files_and_the_key_that_it_is_given() -> None:
    """Its configuration names paths in the container; the key is the one that opens /metrics, and no other."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= mounted
    (farm,) = config["scrape_configs"]
    assert farm["dns_sd_configs"] == [{"names": ["api"], "type": "A", "port": 8080}]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert farm["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret] == {"environment": "FARM_METRICS_KEY"}
    assert "FARM_METRICS_KEY" in environment("api")


def test_grafana_has_no_password_that_others_know() -> None:
    """It does not start with its own; with the provisioned source it finds Prometheus, and the dashboard its folder."""
    variables = environment("grafana")
    assert variables["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_ADMIN_PASSWORD:-}"
    shell = SERVICES["grafana"]["entrypoint"][-1].replace("$$", "$")
    for password, code in (("", 1), ("secret", 0)):
        tried = subprocess.run(
            ["sh", "-c", shell.replace("exec /run.sh", "exit 0")],
            env={"GF_SECURITY_ADMIN_PASSWORD": password},
            capture_output=True,
            check=False,
        )
        assert tried.returncode == code
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards/farm.yml").read_text(encoding="utf-8"))["providers"]
    home = str(variables["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.startswith(provider["options"]["path"] + "/")
    assert (ROOT / "deploy/grafana/dashboards" / Path(home).name).exists()


# -- the images


def test_the_base_image_is_pinned_and_needs_no_frontend() -> None:
    """One slim base with a full version for all stages, and no `# syntax=` line, which would be one more download."""
    bases = {line.split()[0] for line in instructions(DOCKERFILE, "FROM")} - set(dockerfile_stages())
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, flags=re.IGNORECASE | re.MULTILINE)


@pytest.mark.parametrize("target", ["api", "worker"])
def test_images_run_without_root_and_hear_sigterm(target: str) -> None:
    """The last USER is not root; CMD is in exec form, so that no shell stands between SIGTERM and python."""
    stage = dockerfile_stages()[target]
    assert instructions(stage, "USER") == ["farm"]
    (command,) = instructions(stage, "CMD")
    assert yaml.safe_load(command)[:2] == ["python", "-m"]
    assert instructions(dockerfile_stages()["base"], "STOPSIGNAL") == ["SIGTERM"]


@every_service_of_ours
def test_ours_have_an_init_and_no_capabilities(name: str) -> None:
    """PID 1 reaps; nothing of ours can gain privileges."""
    service = SERVICES[name]
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "command" not in service
    assert "entrypoint" not in service


def test_the_api_image_has_no_torch() -> None:
    """It installs the extras `api` and `tracing`, which do not name it."""
    stage = dockerfile_stages()["api"]
    assert "torch" not in stage
    assert re.findall(r"/requirements/(\w+)\.txt", "".join(instructions(stage, "COPY"))) == ["api", "tracing"]
    extras = PROJECT["optional-dependencies"]
    assert not any("torch" in name for name in PROJECT["dependencies"] + extras["api"] + extras["tracing"])


@pytest.mark.parametrize("target", ["api", "worker"])
def test_dependencies_are_pinned_and_cached_before_our_code(target: str) -> None:
    """Every install of others' packages obeys constraints.txt and comes before the layer that each commit changes."""
    stage = dockerfile_stages()[target].replace("\\\n", " ")
    installs = re.findall(r"pip install (.*)$", stage, flags=re.MULTILINE)
    assert len(installs) >= 2
    assert all("-c /requirements/constraints.txt" in install for install in installs[:-1])
    assert installs[-1] == "--no-deps /built/*.whl"
    assert stage.count("--mount=type=cache,target=/root/.cache/pip") == len(installs) - 1


def test_what_the_dockerfile_copies_reaches_the_builder() -> None:
    """Everything is ignored but what is copied; above all .env is."""
    lines = [line for line in DOCKERIGNORE.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for arguments in instructions(DOCKERFILE, "COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == let_in


def test_every_package_of_the_project_is_in_its_wheel() -> None:
    """The stage that builds the wheel copies each top folder that pyproject.toml packs."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = [pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]]
    copied = set(" ".join(instructions(dockerfile_stages()["wheel"], "COPY")).split())
    assert {f"{package.partition('.')[0]}/" for package in packed} <= copied
