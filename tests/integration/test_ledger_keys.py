"""API keys in the ledger: what is kept, what cannot come back, and how requests are counted."""

import pytest

from farm.ledger import ApiKey, Ledger
from farm.settings import Settings
from told_clock import Clock


@pytest.fixture
def clock():
    """Return a clock."""
    return Clock()


@pytest.fixture
def ledger(redis_url, clock):
    """Return a ledger on an empty Redis."""
    ledger = Ledger.connect(Settings(redis_url=redis_url), clock=clock)
    yield ledger
    ledger.close()


def key(key_id="0123456789", **fields):
    """Return a key."""
    return ApiKey(
        **{
            "id": key_id,
            "name": "a script",
            "tenant": "alice",
            "scopes": ("read", "submit"),
            "digest": bytes(range(32)),
            "created_at": 1_800_000_000.25,
            **fields,
        }
    )


def test_a_key_comes_back_as_it_was_kept(ledger):
    """With everything and with nothing that it may have; a hash is bytes, not text."""
    full = key(expires_at=1_900_000_000.5, max_requests_per_minute=60, name="Ünïcode \U0001f511")
    bare = key("abcdefghij", created_at=1_800_000_001.0, name="")
    for each in (bare, full):
        ledger.add_key(each)
    assert ledger.key(full.id) == full
    assert ledger.api_keys() == [full, bare]
    assert ledger.key("9999999999") is None


def test_a_key_is_revoked_for_good_and_at_its_first_moment(ledger, clock):
    """Neither repeating it nor changing its name brings it back or moves the moment."""
    ledger.add_key(key())
    first = ledger.revoke_key("0123456789").revoked_at
    clock.now += 10
    assert ledger.revoke_key("0123456789").revoked_at == first == 1_800_000_000.0
    assert ledger.edit_key("0123456789", name="other", max_requests_per_minute=1).revoked_at == first


def test_what_was_never_made_is_not_made_by_changing_it(ledger):
    """Revoking, renaming and using a key that nobody made leave nothing behind."""
    assert ledger.revoke_key("9999999999") is None
    assert ledger.edit_key("9999999999", name="x", max_requests_per_minute=None) is None
    assert ledger.use_key("9999999999") == 0.0
    assert ledger.key("9999999999") is None
    assert ledger._connection.redis.dbsize() == 0


def test_use_is_noted_once_a_minute(ledger, clock):
    """So that a key that is used all the time costs a write a minute."""
    ledger.add_key(key())
    assert ledger.key("0123456789").last_used_at is None
    ledger.use_key("0123456789")
    first = ledger.key("0123456789").last_used_at
    clock.now += 59
    ledger.use_key("0123456789")
    assert ledger.key("0123456789").last_used_at == first == 1_800_000_000.0
    clock.now += 1
    ledger.use_key("0123456789")
    assert ledger.key("0123456789").last_used_at == 1_800_000_060.0


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one(ledger, clock):
    """Of 6 a minute the seventh waits 10 s, and being told so costs nothing."""
    ledger.add_key(key(max_requests_per_minute=6))
    assert [ledger.use_key("0123456789") for _ in range(6)] == [0.0] * 6
    assert ledger.use_key("0123456789") == ledger.use_key("0123456789") == 10.0
    clock.now += 4
    assert ledger.use_key("0123456789") == 6.0
    clock.now += 6
    assert ledger.use_key("0123456789") == 0.0
    assert ledger.use_key("0123456789") == 10.0
    clock.now += 3600
    assert [ledger.use_key("0123456789") for _ in range(7)] == [0.0] * 6 + [10.0]


def test_a_key_without_a_limit_never_waits(ledger):
    """As often as it likes; and a limit that is taken away is gone at once, one that is set holds at once."""
    ledger.add_key(key())
    assert [ledger.use_key("0123456789") for _ in range(100)] == [0.0] * 100
    ledger.edit_key("0123456789", name="", max_requests_per_minute=1)
    assert [ledger.use_key("0123456789") for _ in range(2)] == [0.0, 60.0]
    ledger.edit_key("0123456789", name="", max_requests_per_minute=None)
    assert ledger.use_key("0123456789") == 0.0


def test_a_clock_that_is_set_back_gives_no_requests_and_takes_none(ledger, clock):
    """The bucket stays as full as it was."""
    ledger.add_key(key(max_requests_per_minute=2))
    ledger.use_key("0123456789")
    clock.now -= 3600
    assert [ledger.use_key("0123456789") for _ in range(2)] == [0.0, 30.0]


def test_whose_jobs_are_is_told_for_many_at_once(ledger):
    """None for those that are not there, in one round trip."""
    assert ledger.tenants_of([]) == {}
    assert ledger.tenants_of(["job_00000000000000000000"]) == {"job_00000000000000000000": None}
