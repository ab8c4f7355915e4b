"""API keys over HTTP: made, listed, changed and revoked by the operator; and who a request's own key makes of it.

How a key looks is api/guard/credentials.py's business, what it opens api/guard/gate.py's.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from api.bodies import parse_object, read_body
from api.field_errors import FieldError, echo
from api.guard.callers import TENANT_NAME, Asker, Scope, operator_only
from api.guard.credentials import new_key
from api.parts import DEFAULT_TENANT, Farm, Parts
from api.problems import (
    BODY_TOO_LARGE,
    FORBIDDEN,
    INVALID_REQUEST,
    LEDGER_DOWN,
    MALFORMED_JSON,
    UNKNOWN_KEY,
    UNSUPPORTED_MEDIA_TYPE,
    HttpProblem,
    documented,
)
from api.schemas import when, when_if
from farm.errors import Refused
from farm.ledger import ApiKey

router = APIRouter(tags=["keys"])
operators = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[Depends(operator_only)])

_PROBLEMS = (FORBIDDEN, INVALID_REQUEST, LEDGER_DOWN)
_BODY_PROBLEMS = (MALFORMED_JSON, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, *_PROBLEMS)
_MAX_BODY_BYTES: Final = 4096
_MAX_REQUESTS: Final = 1_000_000
_KEY_ID: Final = r"^[0-9a-z]{10}$"
_WHEN: Final = "2026-11-22T17:00:00Z"
_KEY: Final[dict[str, Any]] = {
    "id": "7f3k9q2m1x",
    "name": "the studio's batch script",
    "tenant": "alice",
    "scopes": ["submit"],
    "max_requests_per_minute": 600,
    "created_at": _WHEN,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": _WHEN,
}

KeyId = Annotated[str, Path(pattern=_KEY_ID, description="The `id` of a key.", examples=[_KEY["id"]])]
Limit = Annotated[
    int | None,
    Field(
        ge=1,
        le=_MAX_REQUESTS,
        description="Requests a minute; one beyond is 429 with `Retry-After`. A minute's may come at once. Null: any.",
    ),
]


class KeyEdit(BaseModel):
    """What of a key may be changed; what is left out stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", max_length=100, description="What it is for; people read it.")
    max_requests_per_minute: Limit = None


class KeySpec(KeyEdit):
    """A key to be made."""

    tenant: str = Field(DEFAULT_TENANT, pattern=TENANT_NAME, description="Whose jobs it makes and sees.")
    scopes: tuple[Scope, ...] = Field(
        ("submit",),
        min_length=1,
        max_length=4,
        description=(
            "What it is good for. `read`: every GET of its tenant's. `submit`: that, and all that makes or changes the "
            "tenant's jobs. `metrics`: /metrics. `operator`: everything, of every tenant."
        ),
    )
    expires_at: AwareDatetime | None = Field(None, description="When it opens nothing any more. Null: never.")


class Key(BaseModel):
    """A key as it stands. The key itself is told once, when it is made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "key", **_KEY}]})

    object: Literal["key"] = "key"
    id: str
    name: str
    tenant: str
    scopes: list[str]
    max_requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="Give or take a minute; null when it never was.")

    @classmethod
    def of(cls, record: ApiKey, **more: Any) -> Key:
        """Return the ledger's record in this form."""
        return cls(
            id=record.id,
            name=record.name,
            tenant=record.tenant,
            scopes=list(record.scopes),
            max_requests_per_minute=record.max_requests_per_minute,
            created_at=when(record.created_at),
            expires_at=when_if(record.expires_at),
            revoked_at=when_if(record.revoked_at),
            last_used_at=when_if(record.last_used_at),
            **more,
        )


class MadeKey(Key):
    """A key that was just made, with what nobody will be told again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "key", **_KEY, "key": "farm_7f3k9q2m1x_…"}]})

    key: str = Field(description="The key. Only its hash is kept: whoever loses it needs another.")


class KeyList(BaseModel):
    """Every key that was ever made, the oldest first."""

    object: Literal["list"] = "list"
    data: list[Key]


class WhoAmI(BaseModel):
    """Whose request this is, and what it may do."""

    object: Literal["caller"] = "caller"
    auth: Literal["open", "keys"] = Field(description="Whether the API asks for keys.")
    key_id: str | None = Field(description="`operator` and `metrics` are those of the API's settings.")
    tenant: str
    scopes: list[Scope] = Field(description="With all that they include.")


def _body_of(model: str, examples: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}
    }


@router.get("/v1/whoami", response_model=WhoAmI, responses=documented(INVALID_REQUEST))
def who_am_i(farm: Farm, caller: Asker) -> WhoAmI:
    """Tell whose request this is and what it may do: for clients that were given a key and know no more of it."""
    return WhoAmI(
        auth=farm.settings.auth,
        key_id=caller.opened_by.key_id if caller.opened_by else None,
        tenant=caller.tenant,
        scopes=sorted(caller.scopes),
    )


@operators.post(
    "",
    status_code=201,
    response_model=MadeKey,
    response_description="Made. `key` is told here and never again.",
    responses={
        201: {
            "headers": {"Location": {"description": "The key's path.", "schema": {"type": "string"}, "required": True}}
        },
        **documented(*_BODY_PROBLEMS),
    },
    openapi_extra=_body_of(
        "KeySpec",
        {
            "tenant": {"summary": "For a client", "value": {"name": "the studio", "tenant": "alice"}},
            "reader": {
                "summary": "For a screen on the wall, for a month",
                "value": {"name": "screen", "scopes": ["read"], "expires_at": "2100-01-01T00:00:00Z"},
            },
        },
    ),
)
async def create_key(request: Request, farm: Farm) -> JSONResponse:
    """Make a key."""
    spec = parse_object(await read_body(request, max_bytes=_MAX_BODY_BYTES), KeySpec)
    now = time.time()
    if spec.expires_at is not None and spec.expires_at.timestamp() <= now:
        raise Refused("lies in the past", field="expires_at", value=spec.expires_at.isoformat())
    made = new_key()
    record = ApiKey(
        id=made.id,
        name=spec.name,
        tenant=spec.tenant,
        scopes=tuple(dict.fromkeys(spec.scopes)),
        digest=made.digest,
        created_at=now,
        expires_at=None if spec.expires_at is None else spec.expires_at.timestamp(),
        max_requests_per_minute=spec.max_requests_per_minute,
    )
    await run_in_threadpool(farm.ledger.add_key, record)
    document = MadeKey.of(record, key=made.token).model_dump(mode="json")
    return JSONResponse(document, status_code=201, headers={"Location": f"/v1/keys/{made.id}"})


@operators.get("", response_model=KeyList, responses=documented(*_PROBLEMS))
def list_keys(farm: Farm) -> KeyList:
    """List the keys, those that are revoked or expired too."""
    return KeyList(data=[Key.of(key) for key in farm.ledger.api_keys()])


@operators.get("/{key_id}", response_model=Key, responses=documented(UNKNOWN_KEY, *_PROBLEMS))
def get_key(farm: Farm, key_id: KeyId) -> Key:
    """Tell what a key is good for and when it was used."""
    return _told(farm.ledger.key(key_id), key_id)


@operators.patch(
    "/{key_id}",
    response_model=Key,
    responses=documented(UNKNOWN_KEY, *_BODY_PROBLEMS),
    openapi_extra=_body_of("KeyEdit", {"limit": {"value": {"max_requests_per_minute": 60}}}),
)
async def edit_key(request: Request, farm: Farm, key_id: KeyId) -> Key:
    """Give a key another name or limit. What else it may do does not change: make another."""
    given = parse_object(await read_body(request, max_bytes=_MAX_BODY_BYTES), KeyEdit)
    return await run_in_threadpool(_edit, farm, key_id, given)


def _edit(farm: Parts, key_id: str, given: KeyEdit) -> Key:
    known = farm.ledger.key(key_id)
    if known is not None:
        fields = {"name": known.name, "max_requests_per_minute": known.max_requests_per_minute}
        known = farm.ledger.edit_key(key_id, **{**fields, **given.model_dump(exclude_unset=True)})
        farm.keyring.forget(key_id)
    return _told(known, key_id)


@operators.delete(
    "/{key_id}",
    response_model=Key,
    response_description="The key as it stands now: revoked. It stays on the list.",
    responses=documented(UNKNOWN_KEY, *_PROBLEMS),
)
def revoke_key(farm: Farm, key_id: KeyId) -> Key:
    """Revoke a key: within five seconds it opens nothing any more, in any process. What it has made stays."""
    revoked = farm.ledger.revoke_key(key_id)
    farm.keyring.forget(key_id)
    return _told(revoked, key_id)


def _told(key: ApiKey | None, key_id: str) -> Key:
    if key is None:
        error = FieldError(field="key_id", value=echo(key_id), message="is no key's id")
        raise HttpProblem(UNKNOWN_KEY, f"there is no key {key_id!r}", errors=[error])
    return Key.of(key)


router.include_router(operators)
