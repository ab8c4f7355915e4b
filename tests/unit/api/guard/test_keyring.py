"""What keys open: those of the settings and of a ledger that counts how often it is asked."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from api.guard.credentials import new_key
from api.guard.keyring import MAX_AGE_S, Keyring, keys_of
from farm.errors import Fatal, LedgerDown
from farm.ledger import ApiKey
from farm.settings import Settings
from told_clock import Clock


class Keys:
    """A ledger that knows keys, and counts what it is asked."""

    def __init__(self):
        self.known = {}
        self.num_asked = 0
        self.used = []
        self.is_down = False

    def add(self, **fields):
        made = new_key()
        self.known[made.id] = ApiKey(
            **{
                "id": made.id,
                "name": "",
                "tenant": "alice",
                "scopes": ("submit",),
                "digest": made.digest,
                "created_at": 0.0,
                **fields,
            }
        )
        return made

    def key(self, key_id):
        if self.is_down:
            raise LedgerDown("away")
        self.num_asked += 1
        return self.known.get(key_id)

    def use_key(self, key_id):
        self.used.append(key_id)
        return 2.5


@pytest.fixture
def keys():
    """Return the ledger's part."""
    return Keys()


@pytest.fixture
def clock():
    """Return a clock."""
    return Clock()


@pytest.fixture
def keyring(keys, clock):
    """Return a keyring without keys of its own."""
    return Keyring(keys, {}, clock=clock)


def test_a_key_opens_what_it_was_made_for(keyring, keys):
    """Its tenant's, with its scopes; and nobody is told more of it."""
    made = keys.add(tenant="bob", scopes=("read", "metrics"))
    opened = keyring.open(made.token)
    assert (opened.key_id, opened.tenant, opened.scopes) == (made.id, "bob", ("read", "metrics"))


def test_only_the_whole_key_opens(keyring, keys):
    """Neither an id with another key's secret, nor a hash, nor anything that is no key."""
    made, other = keys.add(), new_key()
    keys.known[other.id] = replace(keys.known[made.id], id=other.id)  # as if somebody could swap ids
    for token in (other.token, made.digest.hex(), made.id, "", made.token[:-1], made.token + " "):
        assert keyring.open(token) is None


def test_revoked_and_expired_keys_open_nothing(keyring, keys, clock):
    """An expiry holds to the second, though the key was asked for before."""
    revoked, expiring = keys.add(revoked_at=999.0), keys.add(expires_at=clock.now + 1)
    assert keyring.open(revoked.token) is None
    assert keyring.open(expiring.token) is not None
    clock.now += 1
    assert keyring.open(expiring.token) is None


def test_a_revocation_elsewhere_counts_within_the_promised_seconds(keyring, keys, clock):
    """Until then the ledger is not asked again; after it, it is, and a key that came back is seen likewise."""
    made = keys.add()
    assert keyring.open(made.token) is not None
    keys.known[made.id] = replace(keys.known[made.id], revoked_at=1000.0)
    clock.now += MAX_AGE_S - 0.01
    assert keyring.open(made.token) is not None
    assert keys.num_asked == 1
    clock.now += 0.01
    assert keyring.open(made.token) is None
    assert MAX_AGE_S <= 5


def test_a_clock_that_is_set_back_keeps_no_key_alive(keyring, keys, clock):
    """What was asked for in the future is asked for again."""
    made = keys.add()
    assert keyring.open(made.token) is not None
    keys.known[made.id] = replace(keys.known[made.id], revoked_at=1.0)
    clock.now -= 3600
    assert keyring.open(made.token) is None


def test_what_is_changed_here_counts_at_once(keyring, keys):
    """The process that revokes does not believe its own memory."""
    made = keys.add()
    keyring.open(made.token)
    keys.known[made.id] = replace(keys.known[made.id], revoked_at=1000.0)
    keyring.forget(made.id)
    assert keyring.open(made.token) is None


def test_unknown_keys_are_remembered_as_well_and_memory_is_bounded(keyring, keys):
    """Whoever tries keys that nobody made neither asks Redis for each again nor fills this process."""
    token = new_key().token
    assert keyring.open(token) is None
    assert keyring.open(token) is None
    assert keys.num_asked == 1
    for _ in range(4200):
        keyring.open(new_key().token)
    assert len(keyring._remembered) == 4096


def test_without_redis_only_known_keys_open_and_not_for_long(keyring, keys, clock):
    """An outage opens nothing: it is told as one."""
    made = keys.add()
    keyring.open(made.token)
    keys.is_down = True
    assert keyring.open(made.token) is not None
    clock.now += MAX_AGE_S
    with pytest.raises(LedgerDown):
        keyring.open(made.token)


def test_what_goes_on_is_asked_about_again(keyring, keys, clock):
    """A stream of a key that was revoked or has expired ends; an outage of Redis ends none."""
    made, expiring = keys.add(), keys.add(expires_at=clock.now + 10)
    opened, ending = keyring.open(made.token), keyring.open(expiring.token)
    assert keyring.still_opens(opened)
    clock.now += 10
    assert not keyring.still_opens(ending)
    keys.known[made.id] = replace(keys.known[made.id], revoked_at=clock.now)
    keys.is_down = True
    assert keyring.still_opens(opened)
    keys.is_down = False
    assert not keyring.still_opens(opened)


def test_use_is_noted_once_a_minute_and_counted_where_there_is_a_limit(keyring, keys, clock):
    """A key without a limit costs Redis one write a minute; one with a limit one for each request."""
    free, limited = keyring.open(keys.add().token), keyring.open(keys.add(max_requests_per_minute=60).token)
    assert [keyring.is_counted(free) for _ in range(3)] == [True, False, False]
    assert [keyring.is_counted(limited) for _ in range(3)] == [True] * 3
    clock.now += 60
    assert [keyring.is_counted(free) for _ in range(2)] == [True, False]
    assert keyring.use(free) == 2.5
    assert keys.used == [free.key_id]


def test_what_is_at_hand_asks_nobody(keyring, keys, clock):
    """So that the event loop may look it up itself: never where the ledger would be asked."""
    token = keys.add().token
    assert not keyring.is_at_hand(token)
    keyring.open(token)
    for moment in range(6):
        asked, is_at_hand = keys.num_asked, keyring.is_at_hand(token)
        keyring.open(token)
        assert not is_at_hand or keys.num_asked == asked, moment
        clock.now += 1
    assert keyring.is_at_hand("no key at all")


def test_keys_of_the_settings_need_no_redis(keys):
    """With them the farm can be operated from the first moment, and measured while Redis is away."""
    keys.is_down = True
    settings = Settings(operator_key=SecretStr("o" * 32), metrics_key=SecretStr("m" * 32))
    keyring = Keyring(keys, keys_of(settings, tenant="default"))
    operator, metrics = keyring.open("o" * 32), keyring.open("m" * 32)
    assert (operator.key_id, operator.tenant, operator.scopes) == ("operator", "default", ("operator",))
    assert metrics.scopes == ("metrics",)
    assert not keyring.is_counted(operator)
    assert keyring.open("x" * 32) is None


@pytest.mark.parametrize("field", ["operator_key", "metrics_key"])
@pytest.mark.parametrize("secret", ["short-secret", "x" * 31, "with a blank in the middle of its characters", "ä" * 40])
def test_a_key_of_the_settings_that_could_be_guessed_is_refused(field, secret):
    """By the name of its variable, with the command that makes a good one, and without showing it."""
    with pytest.raises(Fatal, match=f"FARM_{field.upper()} must have 32 characters") as refused:
        keys_of(Settings(**{field: secret}), tenant="default")
    assert secret not in str(refused.value)
    assert "openssl rand" in str(refused.value)
