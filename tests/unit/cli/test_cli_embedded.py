"""Secrets, ports and the embedded servers' configuration."""

import base64
import socket
import stat
from dataclasses import asdict

import pytest

from cli import embedded
from cli.exits import CliError


def test_secrets_are_made_once_and_private(tmp_path):
    """A second start finds the same ones; nobody else can read them."""
    first = embedded.load_secrets(tmp_path)
    assert embedded.load_secrets(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    assert embedded.load_secrets(_folder(tmp_path, "other")) != first


def test_a_folder_of_before_webhooks_gets_their_secret(tmp_path):
    """The other secrets stay: the farm's data is behind them."""
    (tmp_path / "secrets.json").write_text('{"valkey_password": "a", "s3_access_key": "b", "s3_secret_key": "c"}')
    first = embedded.load_secrets(tmp_path)
    assert (first.valkey_password, first.s3_access_key, first.s3_secret_key) == ("a", "b", "c")
    scheme, _, key = first.webhook_secret.partition("_")
    assert scheme == "whsec"
    assert len(base64.b64decode(key, validate=True)) == 32
    assert embedded.load_secrets(tmp_path) == first


def _folder(parent, name):
    folder = parent / name
    folder.mkdir()
    return folder


def test_damaged_secrets_are_not_replaced(tmp_path):
    """New keys would lock the farm out of its own data: say so instead."""
    (tmp_path / "secrets.json").write_text('{"valkey_pass')
    with pytest.raises(CliError, match=r"secrets\.json is damaged"):
        embedded.load_secrets(tmp_path)
    assert (tmp_path / "secrets.json").read_text() == '{"valkey_pass'


@pytest.fixture
def taken(monkeypatch):
    """Return the ports that are taken; all others are free, whatever else runs on this machine."""
    ports = set()
    monkeypatch.setattr(embedded, "is_free", lambda _host, port: port not in ports)
    return ports


@pytest.mark.usefixtures("taken")
def test_ports_are_kept_while_they_are_free(tmp_path):
    """Signed URLs of yesterday name a port."""
    assert embedded.load_ports(tmp_path) == embedded.load_ports(tmp_path)


def test_ports_are_chosen_anew_when_somebody_took_one(tmp_path, taken):
    """A second farm, or anything else, may sit there now."""
    first = embedded.load_ports(tmp_path)
    taken.add(first.s3)
    second = embedded.load_ports(tmp_path)
    assert second.s3 != first.s3


def test_the_port_of_the_api_is_left_to_it(tmp_path, taken):
    """It is free while the servers' ports are chosen, and has to be so when they have started."""
    taken.update(range(20_000, 31_988))
    first = embedded.load_ports(tmp_path, besides=31_990)
    assert 31_990 not in asdict(first).values()
    assert first.s3 not in asdict(embedded.load_ports(tmp_path, besides=first.s3)).values()


def test_picked_ports_differ_and_are_free(taken):
    """No port is given twice, and none that somebody has."""
    taken.update(range(20_000, 31_960))
    assert sorted(embedded.pick_ports(40)) == list(range(31_960, 32_000))
    with pytest.raises(CliError, match="found no 41 free ports"):
        embedded.pick_ports(41)


def test_a_port_is_free_where_a_server_could_listen():
    """Not where one listens; of forty that were found free some still are, whoever else runs on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not embedded.is_free("127.0.0.1", server.getsockname()[1])
    assert any(embedded.is_free("127.0.0.1", port) for port in embedded.pick_ports(40))


def test_valkey_loses_nothing(tmp_path):
    """The settings the ledger's promises rest on, in a file nobody else reads."""
    secret, ports = embedded.load_secrets(tmp_path), embedded.load_ports(tmp_path)
    spec = embedded.valkey_spec(tmp_path, secret, ports)
    conf = tmp_path / "valkey" / "valkey.conf"
    lines = conf.read_text().splitlines()
    expected = {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction", "bind 127.0.0.1"}
    assert expected < set(lines)
    assert stat.S_IMODE(conf.stat().st_mode) == 0o600
    assert secret.valkey_password not in " ".join(spec.argv)


def test_seaweedfs_stays_at_home(tmp_path):
    """Loopback only, no telemetry, every port ours, keys not among the arguments."""
    secret, ports = embedded.load_secrets(tmp_path), embedded.load_ports(tmp_path)
    argv = embedded.seaweedfs_spec(tmp_path, secret, ports).argv
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"} < set(argv)
    assert {f"-s3.port={ports.s3}", f"-s3.port.grpc={ports.s3_grpc}", f"-admin.port.grpc={ports.admin_grpc}"} < set(
        argv
    )
    assert secret.s3_secret_key not in " ".join(argv)


def test_settings_point_at_the_embedded_servers(tmp_path):
    """Every name is a setting of the farm."""
    from farm.settings import Settings  # noqa: PLC0415  only here

    env = embedded.farm_env(embedded.load_secrets(tmp_path), embedded.load_ports(tmp_path))
    assert {name.removeprefix("FARM_").lower() for name in env} < set(Settings.model_fields)


def test_a_running_farm_is_found_by_its_data_folder(tmp_path, taken):
    """Its ports are taken, by itself: they are read as they are, and never chosen anew."""
    with pytest.raises(CliError, match="no data folder of farm up"):
        embedded.env_of_running(tmp_path)
    secret, ports = embedded.load_secrets(tmp_path), embedded.load_ports(tmp_path)
    taken.add(ports.valkey)
    assert embedded.env_of_running(tmp_path) == embedded.farm_env(secret, ports)
