"""API keys over HTTP, on a real ledger: made, used, limited, revoked; whose jobs they open, what is logged of them."""

import base64
import io
import json
import logging
import time

import pytest
from PIL import Image

from api.guard.keyring import MAX_AGE_S
from api_client import WORKER
from farm.logs import QUIETED, JsonFormatter
from farm.pictures import TO_COME
from farm.storage import object_key

OPERATOR_KEY = "operator-" + "0123456789abcdef" * 2
OPERATOR = {"Authorization": f"Bearer {OPERATOR_KEY}"}


@pytest.fixture
def start(make_api):
    """Return a function that starts an API that asks for keys."""
    return lambda **fields: make_api(**{"auth": "keys", "operator_key": OPERATOR_KEY, **fields})


@pytest.fixture(scope="module")
def _with_keys(share_api):
    return share_api(auth="keys", operator_key=OPERATOR_KEY)


@pytest.fixture
def api(_with_keys, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return a client of an API that asks for keys, its ledger empty."""
    return _with_keys


def make_key(api, **fields):
    """Make a key; return the header that shows it, and its record."""
    answer = api.post("/v1/keys", json={"name": "a test", **fields}, headers=OPERATOR)
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['key']}"}, answer.json()


def slug_of(answer):
    """Return the kind of problem that an answer tells."""
    return answer.json()["type"].rpartition(":")[2]


# -- a key's life


def test_a_key_is_shown_once_and_kept_as_a_hash(api):
    """Nowhere in Redis is the key, or the secret within it; no other answer tells it."""
    shown, record = make_key(api, tenant="alice", scopes=["read", "read"], expires_at="2100-01-01T00:00:00Z")
    token = record.pop("key")
    assert api.get("/v1/jobs", headers=shown).status_code == 200
    found = api.get(f"/v1/keys/{record['id']}", headers=OPERATOR).json()
    assert {**found, "last_used_at": None} == record
    assert (found["scopes"], found["expires_at"]) == (["read"], "2100-01-01T00:00:00Z")
    assert api.get("/v1/keys", headers=OPERATOR).json()["data"] == [found]
    redis = api.parts.ledger._connection.redis
    kept = b"".join(name + redis.dump(name) for name in redis.scan_iter())
    assert token.rpartition("_")[2].encode() not in kept
    assert record["id"].encode() in kept


def test_a_revoked_key_opens_nothing_in_any_process(api, start, monkeypatch):
    """At once where it is revoked, elsewhere when the seconds are over that an answer of Redis is believed."""
    other = start()
    shown, record = make_key(api)
    for client in (api, other):
        assert client.get("/v1/jobs", headers=shown).status_code == 200
    revoked = api.delete(f"/v1/keys/{record['id']}", headers=OPERATOR)
    assert revoked.json()["revoked_at"] is not None
    assert api.get("/v1/jobs", headers=shown).status_code == 401
    monkeypatch.setattr(other.parts.keyring, "_clock", lambda: time.time() + MAX_AGE_S + 10)
    answer = other.get("/v1/jobs", headers=shown)
    assert (answer.status_code, slug_of(answer)) == (401, "unauthenticated")
    assert api.delete(f"/v1/keys/{record['id']}", headers=OPERATOR).json() == revoked.json()


def test_an_expired_key_opens_nothing(api, monkeypatch):
    """To the moment, whatever is remembered of it."""
    shown, _ = make_key(api, expires_at="2100-01-01T00:00:00Z")
    assert api.get("/v1/jobs", headers=shown).status_code == 200
    monkeypatch.setattr(api.parts.keyring, "_clock", lambda: 4_102_444_800.0)
    assert api.get("/v1/jobs", headers=shown).status_code == 401


def test_use_is_told(api):
    """So that nobody has to guess whether a key is still needed."""
    shown, record = make_key(api)
    assert record["last_used_at"] is None
    api.get("/v1/jobs", headers=shown)
    assert api.get(f"/v1/keys/{record['id']}", headers=OPERATOR).json()["last_used_at"] is not None


def test_name_and_limit_change_and_nothing_else(api):
    """What is left out stays; what a key may do cannot be widened behind its holder's back."""
    _, record = make_key(api, max_requests_per_minute=5)
    path = f"/v1/keys/{record['id']}"
    changed = api.patch(path, json={"name": "other"}, headers=OPERATOR).json()
    assert (changed["name"], changed["max_requests_per_minute"]) == ("other", 5)
    changed = api.patch(path, json={"max_requests_per_minute": None}, headers=OPERATOR).json()
    assert (changed["name"], changed["max_requests_per_minute"]) == ("other", None)
    for body in ({"scopes": ["operator"]}, {"tenant": "bob"}, {"name": 1}, {"max_requests_per_minute": 0}):
        assert api.patch(path, json=body, headers=OPERATOR).status_code == 422
    assert api.patch("/v1/keys/0123456789", json={}, headers=OPERATOR).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"tenant": "a b"}, "tenant"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2100-01-01T00:00:00"}, "expires_at"),
        ({"max_requests_per_minute": 0}, "max_requests_per_minute"),
        ({"key": "mine"}, "key"),
        ({"name": "x" * 101}, "name"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(api, body, field):
    """The field is named, and nothing is kept; nobody chooses a key."""
    answer = api.post("/v1/keys", json=body, headers=OPERATOR)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert api.get("/v1/keys", headers=OPERATOR).json()["data"] == []


# -- what a key opens


def test_a_key_does_what_its_scope_says(api):
    """One that reads changes nothing, one that submits is no operator's; the words say what is missing."""
    reads, _ = make_key(api, scopes=["read"])
    submits, _ = make_key(api, scopes=["submit"])
    job = api.post_job(headers=submits)["links"]["self"]
    assert api.get(job, headers=reads).status_code == 200
    for method, path in (("DELETE", job), ("POST", "/v1/jobs"), ("POST", f"{job}/pause"), ("POST", "/v1/uploads")):
        answer = api.request(method, path, headers=reads)
        assert (answer.status_code, slug_of(answer)) == (403, "forbidden")
        assert "lacks the scope `submit`" in answer.json()["detail"]
    for path in ("/v1/keys", "/v1/tenants", "/metrics"):
        assert api.get(path, headers=submits).status_code == 403
    assert api.delete(job, headers=submits).status_code == 200


def test_an_operators_key_makes_others(api):
    """As the one of the settings does, which is then needed no more."""
    operator, _ = make_key(api, scopes=["operator"], tenant="ops")
    assert api.post("/v1/keys", json={}, headers=operator).status_code == 201
    told = api.get("/v1/whoami", headers=operator).json()
    assert (told["tenant"], told["scopes"]) == ("ops", ["metrics", "operator", "read", "submit"])


def test_nothing_of_another_tenants_job_is_told(api):
    """To every operation of the document that names a job, it is one that nobody posted."""
    alice, _ = make_key(api, tenant="alice")
    bob, _ = make_key(api, tenant="bob")
    job = api.post_job(headers=alice)
    asked = 0
    for path, operations in api.get("/openapi.json", headers=OPERATOR).json()["paths"].items():
        if "{job_id}" not in path:
            continue
        for method in operations:
            url = path.replace("{job_id}", job["id"]).replace("{index}", "0")
            answer = api.request(method.upper(), url, headers=bob)
            assert (answer.status_code, slug_of(answer)) == (404, "unknown-job"), (method, path)
            nobodys = api.request(method.upper(), url.replace(job["id"], "job_" + "0" * 20), headers=bob)
            assert nobodys.text.replace("job_" + "0" * 20, job["id"]) == answer.text
            asked += 1
    assert asked > 8
    assert api.get("/v1/jobs", headers=bob).json()["data"] == []
    assert api.get("/v1/jobs?tenant=alice", headers=bob).json()["data"] == []
    assert api.get(job["links"]["self"], headers=alice).json()["id"] == job["id"]
    assert api.get(job["links"]["self"], headers=OPERATOR).json()["tenant"] == "alice"


def test_no_job_starts_from_another_tenants_pictures(start, s3):
    """Neither from what it brought along nor from what was made for it, though the key is known: nothing lies there."""
    api = start(**s3, s3_public_endpoint=None)
    api.parts.store.ensure_bucket()
    alice, _ = make_key(api, tenant="alice")
    bob, _ = make_key(api, tenant="bob")
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    kept = {
        name: api.post("/v1/uploads", content=file.getvalue(), headers={**who, "Content-Type": "image/png"}).json()
        for name, who in (("alice", alice), ("bob", bob), ("operator", OPERATOR))
    }
    assert len({upload["key"] for upload in kept.values()}) == 3
    job = api.post_job(headers=alice, image=kept["alice"]["key"])
    made = object_key(job["id"], 0, "png")
    api.parts.store.put(made, file.getvalue(), "image/png")
    missing = kept["bob"]["key"].replace(".png", ".webp")
    for key in (kept["alice"]["key"], kept["operator"]["key"], made, "jobs/x/0.png", "jobs/job_" + "0" * 20 + "/0.png"):
        problem = api.post_job(expect=422, headers=bob, image=key)
        nothing = api.post_job(expect=422, headers=bob, image=missing)
        assert problem["errors"][0]["message"] == nothing["errors"][0]["message"]
    api.post_job(expect=422, headers=bob, prompts=[{"prompt": "a", "image": kept["alice"]["key"]}])
    for who, key in ((bob, kept["bob"]["key"]), (alice, made), (OPERATOR, made), (OPERATOR, kept["alice"]["key"])):
        api.post_job(headers=who, image=key)
    for who, name, status in ((bob, "bob", 200), (bob, "alice", 404), (bob, "operator", 404), (OPERATOR, "alice", 200)):
        assert api.get("/v1/uploads", headers=who, params={"key": kept[name]["key"]}).status_code == status
    preview = {"model": "scenes", "prompts": ["a"], "image": TO_COME, "mask_image": kept["bob"]["key"]}
    assert api.post("/v1/jobs:preview", headers=bob, json=preview).status_code == 200
    preview["mask_image"] = kept["alice"]["key"]
    assert api.post("/v1/jobs:preview", headers=bob, json=preview).json()["errors"][0]["field"] == "mask_image"


def test_a_job_that_has_expired_lends_its_images_to_its_tenant_alone(start, s3):
    """Redis has forgotten it; its manifest still says whose it was."""
    api = start(**s3, s3_public_endpoint=None)
    api.parts.store.ensure_bucket()
    alice, _ = make_key(api, tenant="alice")
    bob, _ = make_key(api, tenant="bob")
    job = "job_" + "1" * 20
    api.parts.store.put(f"jobs/{job}/manifest.jsonl", json.dumps({"tenant": "alice"}).encode() + b"\n", "text/plain")
    api.parts.store.put(f"jobs/{job}/0000000.png", b"picture", "image/png")
    api.post_job(headers=alice, image=f"jobs/{job}/0000000.png")
    api.post_job(expect=422, headers=bob, image=f"jobs/{job}/0000000.png")


# -- limits


def test_a_key_that_asks_too_often_is_told_when_to_come_back(api):
    """In the words of the path's API; other keys of the same tenant are not held up."""
    shown, _ = make_key(api, max_requests_per_minute=2)
    other, _ = make_key(api)
    assert [api.get("/v1/jobs", headers=shown).status_code for _ in range(3)] == [200, 200, 429]
    answer = api.get("/v1/jobs", headers=shown)
    assert slug_of(answer) == "too-many-requests"
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    answer = api.post("/v1/images/generations", json={"prompt": "a"}, headers=shown)
    assert answer.status_code == 429
    assert answer.json()["error"]["message"]
    assert api.get("/v1/jobs", headers=other).status_code == 200


# -- gateways


def test_a_gateway_with_a_key_speaks_for_tenants(start):
    """With the operator's key the header counts; without one nobody enters, and a tenant's speaks for no other."""
    api = start(trust_tenant_header=True)
    carol = {**OPERATOR, "Farm-Tenant": "carol"}
    assert api.get("/v1/jobs", headers={"Farm-Tenant": "carol"}).status_code == 401
    job = api.post_job(headers=carol)
    assert job["tenant"] == "carol"
    assert api.get("/v1/whoami", headers=carol).json()["scopes"] == ["read", "submit"]
    assert api.get("/v1/keys", headers=carol).status_code == 403
    dave, _ = make_key(api, tenant="dave")
    assert api.get(job["links"]["self"], headers={**dave, "Farm-Tenant": "carol"}).status_code == 403
    assert api.get("/v1/jobs", headers={**OPERATOR, "Farm-Tenant": "a b"}).status_code == 422


def test_without_a_gateway_the_header_means_nothing(api):
    """Neither does it make the operator a tenant, nor a tenant another."""
    shown, _ = make_key(api, tenant="dave")
    assert api.post_job(headers={**shown, "Farm-Tenant": "carol"})["tenant"] == "dave"
    assert api.post_job(headers={**OPERATOR, "Farm-Tenant": "carol"})["tenant"] == "default"


# -- the audit log


def test_every_change_stands_in_the_audit_log(api, caplog):
    """Who, whose, from where, what, to which object, and what came of it; reading does not stand there."""
    caplog.set_level(logging.INFO, logger="api.audit")
    shown, record = make_key(api, tenant="alice")
    job = api.post_job(headers=shown)
    path = job["links"]["self"]
    api.post(f"{path}/pause", headers=shown)
    api.delete(path, headers=shown)
    api.get(path, headers=shown)
    api.put("/v1/tenants/alice", json={"weight": 2}, headers=OPERATOR)
    api.put("/v1/tenants/alice", json={"weight": 0}, headers=OPERATOR)
    api.delete(f"/v1/keys/{record['id']}", headers=OPERATOR)
    lines = [line for line in caplog.records if getattr(line, "action", "") == "audit"]
    alice, key = f"key:{record['id']}", f"/v1/keys/{record['id']}"
    assert [(line.who, line.tenant, line.what, line.target, line.outcome) for line in lines] == [
        ("key:operator", "default", "create_key", key, "done"),
        (alice, "alice", "create_job", path, "done"),
        (alice, "alice", "pause_job", f"{path}/pause", "done"),
        (alice, "alice", "cancel_job", path, "done"),
        ("key:operator", "default", "set_tenant", "/v1/tenants/alice", "done"),
        ("key:operator", "default", "set_tenant", "/v1/tenants/alice", "refused"),
        ("key:operator", "default", "revoke_key", key, "done"),
    ]
    assert {line.client for line in lines} == {"testclient"}


def test_no_log_line_holds_a_secret(start, s3, caplog):
    """Keys, wrong ones too, signed URLs, secrets of webhooks and of the store: whatever is done with them."""
    caplog.set_level(logging.DEBUG)
    webhook_secret = base64.b64encode(b"w" * 32).decode()
    api = start(**s3, s3_public_endpoint=None, webhook_secret=f"whsec_{webhook_secret}", webhook_allow_private="true")
    api.parts.store.ensure_bucket()
    shown, record = make_key(api, scopes=["submit"])
    token, wrong = record["key"], record["key"][:-4] + "zzzz"
    hook = {"url": "http://127.0.0.1:9/hook?token=hook-token"}
    job = api.post_job(headers=shown, webhook=hook, labels={"note": "label-text"}, prompts=["prompt-text"])
    (hint,) = api.work()
    api.parts.store.put(object_key(job["id"], 0, "png"), b"x", "image/png")
    assert api.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.0)
    url = api.get(job["links"]["images"], headers=shown).json()["data"][0]["url"]
    while not api.get(f"{job['links']['self']}/webhooks", headers=shown).json()["data"][0]["tries"]:
        time.sleep(0.1)  # the suite's own limit ends this
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    assert api.post("/v1/uploads", content=file.getvalue(), headers={**shown, "Content-Type": "image/png"}).is_success
    for secret in (token, wrong, OPERATOR_KEY + "x"):
        api.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
        api.get("/v1/jobs", auth=("user", secret))
        api.get("/v1/jobs", headers={"Authorization": f"Nonsense {secret}"})
        api.post("/v1/keys", json={"name": secret, "key": secret}, headers=OPERATOR)
        api.get(f"/v1/jobs?key={secret}", headers=shown)
    signature = url.partition("X-Amz-Signature=")[2].partition("&")[0]
    assert len(signature) == 64
    ours = [
        line for line in caplog.records if line.name.partition(".")[0] not in {*QUIETED, "httpx2"}
    ]  # the last: the test's
    lines = [JsonFormatter().format(line) for line in ours]
    assert any('"audit"' in line for line in lines)
    logged = "\n".join(lines)
    secrets = [token, wrong, OPERATOR_KEY, webhook_secret, s3["s3_secret_key"], signature, "X-Amz-", "hook-token"]
    assert [secret for secret in secrets if secret in logged] == []
    assert not {"prompt-text", "label-text"} & set(logged.split('"'))
