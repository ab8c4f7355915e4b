"""Signatures are those of the Standard Webhooks specification."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.webhooks.signing import keys_of, signature
from farm.errors import Fatal

# The example that the specification's own libraries test themselves with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1_614_265_330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def test_the_signature_is_the_one_of_the_specifications_example():
    """Any receiver's library verifies what we sign."""
    assert signature(keys_of(SECRET), MESSAGE_ID, TIMESTAMP, BODY) == SIGNATURE


def test_while_a_secret_is_changed_both_sign():
    """A receiver with either secret finds a signature of its own, the first secret's first."""
    both = signature(keys_of(f" {SECRET}  {OTHER_SECRET} "), MESSAGE_ID, TIMESTAMP, BODY)
    assert both.split(" ") == [SIGNATURE, signature(keys_of(OTHER_SECRET), MESSAGE_ID, TIMESTAMP, BODY)]


@given(st.binary(max_size=64), st.integers(0, 2**40))
def test_id_time_and_body_all_count(body, timestamp):
    """What is signed once does not verify with another body, id or time."""
    keys = keys_of(OTHER_SECRET)
    signed = signature(keys, "msg_a", timestamp, body)
    others = [("msg_b", timestamp, body), ("msg_a", timestamp + 1, body), ("msg_a", timestamp, body + b".")]
    assert all(signature(keys, *other) != signed for other in others)


@pytest.mark.parametrize(
    ("secrets", "told"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not begin with whsec_"),
        (f"{SECRET} MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "secret 2 does not begin with whsec_"),
        ("whsec_???", "is not base64"),
        ("whsec_" + base64.b64encode(b"short").decode(), "has 5 bytes"),
        ("whsec_" + base64.b64encode(bytes(65)).decode(), "has 65 bytes"),
    ],
)
def test_a_secret_of_another_form_is_refused_and_not_shown(secrets, told):
    """The start fails with the reason; the log does not learn the secret."""
    with pytest.raises(Fatal, match="FARM_WEBHOOK_SECRET") as caught:
        keys_of(secrets)
    assert told in str(caught.value)
    assert "MfKQ9r8G" not in str(caught.value)


def test_nothing_set_is_no_key():
    """Blanks alone are no secret."""
    assert keys_of("  ") == ()
