"""One POST to one receiver: what it carries, how its answer is judged, and that nothing makes it wait or wander."""

import base64
import hashlib
import hmac
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from api.webhooks.sending import Message, Sender
from api.webhooks.targets import Allowed
from fake_http import answering, serving
from farm.errors import Refused
from farm.settings import Settings

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_795_000_000
LOOPBACK = Allowed.of("127.0.0.0/8")
MESSAGE = Message("msg_a_done", b'{"type":"job.done"}')


def sender(**others):
    """Return a sender that may talk to this machine, at a known time."""
    return Sender(**{"keys": [KEY], "allowed": LOOPBACK, "clock": lambda: NOW + 0.9, **others})


def resolving(*ips):
    """Return a name server that gives every name these addresses, and the list of names it was asked for."""
    asked = []

    def lookup(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    return lookup, asked


@contextmanager
def silent(answer=b"", *, every_s=0.0):
    """Serve a socket that sends `answer` byte by byte and then says nothing; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                for position in range(len(answer)):
                    if ended.wait(every_s):
                        return
                    try:
                        connection.sendall(answer[position : position + 1])
                    except OSError:
                        return
                ended.wait(200)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def test_what_is_sent_is_signed_json():
    """One POST with the three headers; a receiver's own arithmetic finds the signature."""
    with serving((204, b"", {})) as (url, seen):
        outcome = sender().send(f"{url}/hook?token=1", MESSAGE)
    assert outcome.is_delivered
    assert outcome.status == 204
    (request,) = seen
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert (request.method, request.path, request.body) == ("POST", "/hook?token=1", MESSAGE.body)
    assert headers["content-type"] == "application/json"
    assert headers["host"] == url.removeprefix("http://")
    assert headers["webhook-id"] == "msg_a_done"
    assert headers["webhook-timestamp"] == str(NOW)
    expected = hmac.new(KEY, f"msg_a_done.{NOW}.".encode() + MESSAGE.body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(status):
    """And nothing else is."""
    with serving((status, b"", {})) as (url, _):
        outcome = sender().send(url, MESSAGE)
    assert outcome.is_delivered
    assert outcome.error is None


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 502, 504])
def test_any_other_status_is_not(status):
    """The outcome tells which it was; 410 alone means: no more."""
    with serving((status, b"", {"Location": "http://127.0.0.1:1/"})) as (url, seen):
        outcome = sender().send(url, MESSAGE)
    assert not outcome.is_delivered
    assert outcome.status == status
    assert f"answered {status}" in outcome.error
    assert outcome.is_gone is (status == 410)
    assert len(seen) == 1


def test_a_redirect_is_not_followed():
    """Not even to the same host."""
    with answering(lambda request: (302, b"", {"Location": "/b"}) if request.path == "/a" else (200, b"", {})) as (
        url,
        seen,
    ):
        outcome = sender().send(f"{url}/a", MESSAGE)
    assert "redirects are not followed" in outcome.error
    assert [request.path for request in seen] == ["/a"]


@pytest.mark.parametrize(("given", "seconds"), [("120", 120.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-5", 0.0)])
def test_retry_after_is_heard(given, seconds):
    """In seconds; dates are left to the schedule."""
    with serving((503, b"", {"Retry-After": given})) as (url, _):
        assert sender().send(url, MESSAGE).retry_after_s == seconds


def test_a_name_is_resolved_once_and_its_checked_address_is_asked():
    """The address is the name server's, Host is the name's, and no second lookup could answer otherwise."""
    lookup, asked = resolving("127.0.0.1")
    with serving((200, b"", {})) as (url, seen):
        port = url.rpartition(":")[2]
        outcome = sender(lookup=lookup).send(f"http://receiver.test:{port}/", MESSAGE)
    assert outcome.is_delivered
    assert asked == ["receiver.test"]
    assert seen[0].headers["Host"] == f"receiver.test:{port}"


def test_a_name_inside_is_not_asked():
    """Nobody connects to a loopback address that no setting allows, and the answer tells no address."""
    lookup, _ = resolving("127.0.0.1")
    with serving((200, b"", {})) as (url, seen):
        port = url.rpartition(":")[2]
        for target in (url, f"http://receiver.test:{port}/"):
            outcome = sender(allowed=Allowed(), lookup=lookup).send(target, MESSAGE)
            assert outcome.status is None
            assert "FARM_WEBHOOK_ALLOW_PRIVATE" in outcome.error
        assert seen == []
    assert "127.0.0.1" not in outcome.error


def test_the_environments_proxies_are_not_used(monkeypatch):
    """A proxy would resolve the name again, out of sight."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving((200, b"", {})) as (url, _):
        assert sender().send(url, MESSAGE).is_delivered


def test_the_second_address_is_tried_when_the_first_does_not_answer():
    """As any client does."""
    lookup, _ = resolving("127.0.0.2", "127.0.0.1")
    with serving((200, b"", {})) as (url, _):
        port = url.rpartition(":")[2]
        assert sender(lookup=lookup).send(f"http://receiver.test:{port}/", MESSAGE).is_delivered


def test_a_receiver_that_cannot_be_reached_is_told():
    """Refused connections and unknown names are outcomes, not exceptions."""

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # nor can anybody else listen there
        port = nobody.getsockname()[1]
        assert "cannot be reached" in sender().send(f"http://127.0.0.1:{port}", MESSAGE).error
    assert "not known" in sender(lookup=unknown).send("http://nowhere.test", MESSAGE).error
    assert "names no host" in sender().send("http://", MESSAGE).error


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1000], ids=len
)
def test_a_receiver_that_is_slow_is_given_up_in_time(answer):
    """Nothing at all, only an interim answer, or a head of which a byte comes now and then: the deadline holds."""
    started = time.monotonic()
    with silent(answer, every_s=0.15) as port:  # the slowest takes minutes
        outcome = sender(total_s=0.4).send(f"http://127.0.0.1:{port}", MESSAGE)
        took_s = time.monotonic() - started
    assert outcome.error == "no answer in time"
    assert 0.4 <= took_s < 60


@pytest.mark.parametrize("answer", [b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000])
def test_an_answer_that_is_not_http_is_told(answer):
    """Nor is a head without end."""
    with silent(answer) as port:
        outcome = sender().send(f"http://127.0.0.1:{port}", MESSAGE)
    assert "not HTTP" in outcome.error


def test_a_connection_that_is_closed_is_told():
    """Nothing was acknowledged."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        outcome = sender().send(f"http://127.0.0.1:{server.getsockname()[1]}", MESSAGE)
        thread.join()
    assert outcome.status is None
    assert outcome.error


def test_without_a_secret_nothing_is_sent():
    """A farm that cannot sign says which setting it lacks, at the request and at every try."""
    unsigned = sender(keys=())
    with serving((200, b"", {})) as (url, seen):
        assert "FARM_WEBHOOK_SECRET" in unsigned.send(url, MESSAGE).error
        with pytest.raises(Refused, match="FARM_WEBHOOK_SECRET") as caught:
            unsigned.check(url, field="webhook.url")
        assert seen == []
    assert caught.value.field == "webhook.url"


def test_it_is_built_from_the_settings():
    """Both settings are read."""
    with serving((200, b"", {})) as (url, _):
        settings = Settings(webhook_secret=SECRET, webhook_allow_private="127.0.0.1")
        assert Sender.of(settings).send(url, MESSAGE).is_delivered
        assert not Sender.of(Settings(webhook_secret=SECRET)).send(url, MESSAGE).is_delivered


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return a file with a certificate for receiver.test and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes a certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=receiver.test", "-addext", "subjectAltName=DNS:receiver.test"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-days", "2", *subject, "-keyout", key, "-out", cert], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(cert.read_text() + key.read_text())
    return both


@contextmanager
def tls_receiver(certificate):
    """Serve one request over TLS; yields the port, and the names that clients asked for."""
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda *about: names.append(about[1])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as wrapped:
                    wrapped.recv(65536)
                    wrapped.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], names
        thread.join()


def test_https_goes_to_the_checked_address_under_the_names_certificate(certificate):
    """SNI and certificate are the name's though the socket went to an address."""
    trusting = ssl.create_default_context(cafile=certificate)
    lookup, _ = resolving("127.0.0.1")
    with tls_receiver(certificate) as (port, names):
        outcome = sender(lookup=lookup, tls=trusting).send(f"https://receiver.test:{port}/", MESSAGE)
    assert outcome.is_delivered, outcome.error
    assert names == ["receiver.test"]


@pytest.mark.parametrize(("host", "is_trusted"), [("other.test", True), ("127.0.0.1", True), ("receiver.test", False)])
def test_a_certificate_of_another_name_or_of_nobody_is_refused(certificate, host, is_trusted):
    """Otherwise whoever answers for the name would get the message."""
    tls = ssl.create_default_context(cafile=certificate if is_trusted else None)
    lookup, _ = resolving("127.0.0.1")
    with tls_receiver(certificate) as (port, _):
        outcome = sender(lookup=lookup, tls=tls).send(f"https://{host}:{port}/", MESSAGE)
    assert outcome.status is None
    assert "certificate" in outcome.error.lower()
