"""The OpenAPI document against the running API: schemathesis sends what it allows and what it forbids."""

import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as examples
from schemathesis.config import SchemathesisConfig
from schemathesis.python import asgi

from api.app import create_app
from api.watching import sse
from api_client import WORKER, api_settings, heartbeat
from farm.ledger import Ledger
from farm.settings import Settings
from farm.storage import Store
from stand_in import StandIn

SEED = 20_261_122
MAX_EXAMPLES = max(1, examples().max_examples // 8)  # of each operation
CONFIG = {"seed": SEED, "generation": {"deterministic": True, "mode": "all"}}
DOCUMENT = create_app(Settings()).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig.from_dict(CONFIG))
# Operations that take what others take, too: in `make test` the bodies that cover the schema, hundreds and thousands
# of them, are sent to those.
LIKE_OTHERS = ["/v1/jobs:preview", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"]
lightly = schemathesis.openapi.from_dict(
    DOCUMENT, config=SchemathesisConfig.from_dict({**CONFIG, "phases": {"coverage": {"enabled": False}}})
)


@schemathesis.serializer("image/avif", "text/csv", "application/jsonl")
def as_bytes(_context, value):
    """Send what schemathesis makes up for pictures, tables and lines in formats that it has no serializer for."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def running(valkey_server, seaweed_server):
    """Return a client of an API on real servers, and what its paths may name: a job with images in several states."""
    print(f"schemathesis seed {SEED}")  # noqa: T201  pytest shows it beside a failure
    valkey_server.flush()
    settings = api_settings(valkey_server.url, **seaweed_server.credentials, s3_bucket="farm-contract")
    app = create_app(settings)
    with asgi.get_client(app) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "LONGEST_S", 0.2)  # the client takes a stream for an answer when it has ended
        body = {"model": "scenes", "prompts": ["a"], "num_images_per_prompt": 4, "labels": {"a": "b"}}
        job_id = client.post("/v1/jobs", json=body).json()["id"]
        store = Store.connect(settings)
        store.ensure_bucket()
        ledger = Ledger.connect(settings)  # our own: the client may start and stop the application as it likes
        ledger.report(heartbeat())
        stored, failed, _rendering = hints = ledger.feed("scenes", limit=3)
        assert all(ledger.claim(hint, WORKER) for hint in hints)
        ledger.stored(stored, WORKER, gpu_s=0.5, render_s=1.0)
        ledger.failed(failed, WORKER, "the reason", final=True)
        # Requests that wait for their images get them; a million images that nobody waits for are not drawn.
        with StandIn(ledger, store, max_images=64):
            yield client, {"job_id": job_id, "model_id": "scenes"}
        ledger.close()
    asgi.shutdown_lifespans()


def has_nothing_to_say(context):
    """Tell whether an operation of A1111's takes no body: of its many lists one request tells all there is to tell."""
    operation = context.operation
    return operation.path.startswith(("/sdapi/", "/controlnet/")) and "requestBody" not in operation.definition.raw


few = examples(max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@schema.exclude(has_nothing_to_say).exclude(path=LIKE_OTHERS).parametrize()
@few
def test_no_request_breaks_the_api_or_its_own_description(case, running):
    """No 5xx, no status, type or shape of an answer that the document does not tell of."""
    check(case, running)


@lightly.include(path=LIKE_OTHERS).parametrize()
@few
def test_nothing_drawn_breaks_what_takes_what_others_take(case, running):
    """Likewise, of a few bodies that are drawn."""
    check(case, running)


@pytest.mark.long
@schema.include(path=LIKE_OTHERS).parametrize()
@few
def test_nothing_breaks_what_takes_what_others_take(case, running):
    """Likewise, of all that cover the schema."""
    check(case, running)


def test_each_operation_has_a_test_of_its_own(request):
    """An id that two tests have is one test to xdist, and the other is never run."""
    ids = [item.nodeid for item in request.session.items]
    assert len(set(ids)) == len(ids)


def test_lists_are_as_they_are_described(running):
    """Likewise of what A1111's clients ask for before they render: nothing can be made up for that."""
    operations = [found.ok() for found in schema.include(has_nothing_to_say).get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        check(operation.Case(), running)


def check(case, running):
    """Send a request; the answer must be one that the document tells of."""
    client, known = running
    for name, made_up in case.path_parameters.items():
        if name in known and len(str(made_up)) % 2 == 0:
            case.path_parameters[name] = known[name]  # names that are made up are all unknown
    excluded = []
    if case.method in ("PATCH", "POST", "PUT"):
        # What fits the schema may still not fit the model (a width of 9, 60.0 for a whole number), or be under a key
        # used before.
        excluded.append(schemathesis.checks.positive_data_acceptance)
    if case.path.startswith(("/sdapi/", "/internal/")):
        # As in A1111, "20" is a number there, and what nobody knows is passed over.
        excluded.append(schemathesis.checks.negative_data_rejection)
    case.call_and_validate(base_url=client.base_url, session=client, excluded_checks=excluded)
