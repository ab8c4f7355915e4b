"""Objects in S3: where each one lies, how it gets there, how a client reaches it. The only file that knows boto3.

Any S3-compatible endpoint will do. A key follows from job and index alone, so rendering a unit twice writes the
same object twice. Which images exist is the ledger's business, how long they are kept that of whoever deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from farm.errors import FarmError, Fatal, StorageDown
from farm.settings import Settings

ImageFormat = Literal["png", "jpeg", "webp", "avif"]

CONTENT_TYPES: Final[dict[ImageFormat, str]] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
}
_EXTENSIONS: Final[dict[ImageFormat, str]] = {"png": "png", "jpeg": "jpg", "webp": "webp", "avif": "avif"}

_UPLOADS: Final = "uploads/"
_OWNED: Final = "of-"  # no digest begins so, nor can a name be "..": it is not the whole of a part of the key

_PART_BYTES: Final = 8 * 1024 * 1024
"""Of a large object: what a write holds in memory. S3 takes 10,000 parts, hence objects of up to 80 GB."""
_PIECE_BYTES: Final = 256 * 1024  # of an object that is read bit by bit
_DELETED_PER_CALL: Final = 1000  # S3's own limit

_MISSING: Final = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_OURS_ALREADY: Final = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
_REFUSED: Final = frozenset(
    {
        "401",
        "403",
        "AccessDenied",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)


def object_key(job: str, index: int, image_format: ImageFormat) -> str:
    """Return the key of image `index` of `job`: `jobs/<job>/<index, 7 digits>.<extension>`."""
    return f"jobs/{job}/{index:07d}.{_EXTENSIONS[image_format]}"


def upload_key(digest: str, image_format: ImageFormat, *, owner: str | None = None) -> str:
    """Return the key of a client's picture: `uploads/<sha256 of its bytes, hex>.<extension>`.

    An owner's pictures lie apart from all others: `uploads/of-<owner>/…`.
    """
    folder = _UPLOADS if owner is None else f"{_UPLOADS}{_OWNED}{owner}/"
    return f"{folder}{digest}.{_EXTENSIONS[image_format]}"


def uploader_of(key: str) -> str | None:
    """Return whose picture lies under a key, or would; None for one that is nobody's in particular."""
    folder, _, name = key.removeprefix(_UPLOADS).rpartition("/")
    return folder.removeprefix(_OWNED) if name and folder.startswith(_OWNED) else None


def thumbnail_key(job: str, index: int) -> str:
    """Return the key of its thumbnail, a WebP: `jobs/<job>/<index, 7 digits>.thumb.webp`."""
    return f"jobs/{job}/{index:07d}.thumb.webp"


def upscaled_key(job: str, index: int, image_format: ImageFormat, factor: int) -> str:
    """Return the key of its enlarged version: `jobs/<job>/<index, 7 digits>.x<factor>.<extension>`."""
    return f"jobs/{job}/{index:07d}.x{factor}.{_EXTENSIONS[image_format]}"


def job_prefix(job: str) -> str:
    """Return what the keys of all objects of a job start with: `jobs/<job>/`."""
    return f"jobs/{job}/"


def manifest_key(job: str) -> str:
    """Return the key of the list of its images, written when it has ended: `jobs/<job>/manifest.jsonl`."""
    return f"{job_prefix(job)}manifest.jsonl"


def grid_key(job: str, image_format: ImageFormat) -> str:
    """Return the key of the picture of all its images, where one was asked for: `jobs/<job>/grid.<extension>`."""
    return f"{job_prefix(job)}grid.{_EXTENSIONS[image_format]}"


def content_key(content_hash: str) -> str:
    """Return the key of what is known of an image by all that its bytes depend on: `content/<sha256, hex>.json`."""
    return f"content/{content_hash}.json"


class NoSuchObject(Fatal):
    """Nothing lies under this key."""


class StoredObject(NamedTuple):
    """An object as a listing tells of it."""

    key: str
    num_bytes: int
    modified_at: float  # Unix time of its last write


class Store:
    """One bucket. Safe to share between threads; every method but `connect` and `presigned_url` talks to S3.

    All raise StorageDown when the endpoint does not answer or answers with an error of its own, and Fatal when it
    refuses the credentials: waiting does not mend those.
    """

    def __init__(self, client: Any, signer: Any, *, bucket: str, url_expiry_s: int) -> None:
        self._client = client
        self._signer = signer
        self._bucket = bucket
        self._url_expiry_s = url_expiry_s

    @classmethod
    def connect(cls, settings: Settings) -> Store:
        """Build a store from `settings`. No I/O.

        Without `s3_access_key`, boto3 looks for credentials in its usual places (environment, files, instance).
        """
        client = _client(settings, settings.s3_endpoint)
        # A client signs for the host it speaks to, so URLs for the outside need a client of their own.
        public = None if settings.links_through_api else settings.s3_public_endpoint
        signer = _client(settings, public) if public else client
        return cls(client, signer, bucket=settings.s3_bucket, url_expiry_s=settings.url_expiry_s)

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there; whoever else does so at the same moment is welcome."""
        with _translated(f"bucket {self._bucket!r}"):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise
            else:
                return
            try:
                self._client.create_bucket(Bucket=self._bucket, **self._location())
            except ClientError as error:
                if _code(error) not in _OURS_ALREADY:
                    raise

    def ready(self) -> None:
        """Return when the endpoint answers and the bucket is there; raise StorageDown or Fatal otherwise."""
        with _translated(f"bucket {self._bucket!r}"):
            self._client.head_bucket(Bucket=self._bucket)

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write an object, replacing what lies there; create the bucket if it has gone, or never was."""
        with _translated(key):
            try:
                self._put(key, data, content_type)
            except self._client.exceptions.NoSuchBucket:
                self.ensure_bucket()
                self._put(key, data, content_type)

    def _put(self, key: str, data: bytes, content_type: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type)

    def put_stream(self, key: str, pieces: Iterable[bytes], content_type: str) -> None:
        """Write an object of any size, piece by piece, in bounded memory; it appears under its key when it is whole.

        What `pieces` raises passes through, and leaves nothing behind.
        """
        parts = _parts(pieces)
        first = next(parts, b"")
        if len(first) < _PART_BYTES:
            self.put(key, first, content_type)
            return
        target = {"Bucket": self._bucket, "Key": key}
        with _translated(key):
            try:
                upload = self._client.create_multipart_upload(**target, ContentType=content_type)
            except self._client.exceptions.NoSuchBucket:
                self.ensure_bucket()
                upload = self._client.create_multipart_upload(**target, ContentType=content_type)
        target["UploadId"] = upload["UploadId"]
        try:
            tags = [self._put_part(target, 1, first)]
            tags += [self._put_part(target, number, part) for number, part in enumerate(parts, 2)]
            with _translated(key):
                self._client.complete_multipart_upload(**target, MultipartUpload={"Parts": tags})
        except BaseException:
            # As far as the storage answers. What it keeps otherwise is seen by nobody but whoever lists uploads.
            with suppress(FarmError), _translated(key):
                self._client.abort_multipart_upload(**target)
            raise

    def _put_part(self, target: dict[str, Any], number: int, part: bytes) -> dict[str, Any]:
        with _translated(target["Key"]):
            answer = self._client.upload_part(**target, PartNumber=number, Body=part)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def copy(self, source: str, target: str) -> None:
        """Write `target` as a copy of `source`, within the storage; raises NoSuchObject when there is none."""
        origin = {"Bucket": self._bucket, "Key": source}
        with _translated(source):
            try:
                self._client.copy_object(Bucket=self._bucket, Key=target, CopySource=origin)
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise NoSuchObject(f"the storage has nothing under {source}") from error
                raise

    def get(self, key: str) -> bytes:
        """Return an object's bytes; raises NoSuchObject when there is none."""
        with _translated(key):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            except self._client.exceptions.NoSuchKey as error:
                raise NoSuchObject(f"the storage has nothing under {key}") from error
            with body:
                return bytes(body.read())

    def pieces(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes piece by piece, in bounded memory; raises NoSuchObject when there is none."""
        with _translated(key):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise NoSuchObject(f"the storage has nothing under {key}") from error
                raise
            with body:
                yield from body.iter_chunks(_PIECE_BYTES)

    def read_start(self, key: str, num_bytes: int) -> bytes:
        """Return the first `num_bytes` of an object, or all of a shorter one; raises NoSuchObject."""
        with _translated(key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes=0-{num_bytes - 1}")
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise NoSuchObject(f"the storage has nothing under {key}") from error
                raise
            with answer["Body"] as body:
                return bytes(body.read())

    def exists(self, key: str) -> bool:
        """Tell whether an object lies under `key`."""
        with _translated(key):
            try:
                self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise
                return False
            return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, in order."""
        return (found.key for found in self.objects(prefix))

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys start with `prefix`, in order of their keys; none where there is no bucket.

        With `after` only those whose keys come later than this one.
        """
        wanted = {"Bucket": self._bucket, "Prefix": prefix} | ({"StartAfter": after} if after else {})
        with _translated(f"keys under {prefix!r}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(**wanted)
            try:
                for page in pages:
                    for item in page.get("Contents", ()):
                        yield StoredObject(item["Key"], item["Size"], item["LastModified"].timestamp())
            except self._client.exceptions.NoSuchBucket:
                return

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error. Raises StorageDown when one could not be deleted."""
        for start in range(0, len(keys), _DELETED_PER_CALL):
            batch = [{"Key": key} for key in keys[start : start + _DELETED_PER_CALL]]
            with _translated(f"{len(batch)} objects"):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
            if refused := answer.get("Errors"):
                first = refused[0]
                raise StorageDown(f"the storage did not delete {first['Key']}: {first.get('Message', 'no reason')}")

    def presigned_url(self, key: str, *, save_as: str | None = None, expiry_s: int | None = None) -> str:
        """Return a URL by which anybody may GET the object for `expiry_s` seconds, by default `url_expiry_s`.

        S3 signs for a week at most. Its host is the public endpoint's, if one is set. A browser shows the object, or
        saves it under the name `save_as`, which must be ASCII without quotes. No I/O: the object need not exist yet.
        """
        wanted = {"Bucket": self._bucket, "Key": key}
        if save_as is not None:
            wanted["ResponseContentDisposition"] = f'attachment; filename="{save_as}"'
        with _translated(key):
            return str(
                self._signer.generate_presigned_url(
                    "get_object", Params=wanted, ExpiresIn=self._url_expiry_s if expiry_s is None else expiry_s
                )
            )

    def _location(self) -> dict[str, Any]:
        """Name the region where AWS wants it named: everywhere but in its first."""
        region = self._client.meta.region_name
        return {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces joined to parts of one size, as some servers want them; the last is what remains."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _PART_BYTES:
            with memoryview(buffer) as view:
                part = bytes(view[:_PART_BYTES])
            del buffer[:_PART_BYTES]
            yield part
    if buffer:
        yield bytes(buffer)


@cache
def _descriptions() -> Any:
    """Return what reads botocore's descriptions of services: a megabyte of JSON for S3, once for all clients."""
    return botocore.session.Session().get_component("data_loader")


def _client(settings: Settings, endpoint: str | None) -> Any:
    # A session of our own: boto3's default one is not safe to use from several threads.
    own = botocore.session.Session()
    own.register_component("data_loader", _descriptions())
    session = boto3.session.Session(
        botocore_session=own,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key,
        region_name=settings.s3_region,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            signature_version="s3v4",
            connect_timeout=min(3.0, settings.s3_timeout_s),
            read_timeout=settings.s3_timeout_s,
            # Few: whoever calls keeps the image and its lease, and tries again in its own rhythm.
            retries={"mode": "standard", "total_max_attempts": 2},
            # Buckets as host names need DNS that only AWS has.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Checksum trailers are an AWS novelty that other servers refuse or store with the object.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=32,
        ),
    )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn boto's errors into the farm's."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _REFUSED:
            raise Fatal(f"the storage refuses our credentials for {what}: {error}") from error
        raise StorageDown(f"the storage failed on {what}: {error}") from error
    except NoCredentialsError as error:
        raise Fatal("no S3 credentials: set FARM_S3_ACCESS_KEY and FARM_S3_SECRET_KEY") from error
    except BotoCoreError as error:
        raise StorageDown(f"the storage does not answer for {what}: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
