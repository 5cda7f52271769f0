"""A store that speaks S3: AWS itself, Supabase, SeaweedFS, Ceph and whoever else. The only file that knows aioboto3.

Every call has one deadline, within which it is tried again; a store that keeps failing is left alone for a while. What
stores differ in is not used: no `If-None-Match`, no batch deletes, no checksums but Content-MD5 (Supabase verifies
none of them), no lifecycle rules. Errors are told by their HTTP status, since not all stores fill in the code.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote, urlsplit

import aioboto3
import aiohttp
import msgspec
from aiobotocore.config import AioConfig
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from storage import keys
from storage.breaker import Breaker
from storage.errors import (
    ObjectMissing,
    PartsMismatch,
    RangeInvalid,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    UploadMissing,
)
from storage.signing import UrlSigner
from storage.store import OCTETS, SMALL_BYTES, Observe, Page, Part, Signed, Stored, Upload, UploadPage, check_parts

PIECE_BYTES: Final = 256 * 1024
_CONNECT_S: Final = 1.0
# Calls at once. Reads have places of their own: a body holds its connection as long as somebody takes it slowly.
_CALLS: Final = 64
# More than the downloads by frames that a node keeps open (hub/background/readings.py), and as many others again.
_READS: Final = 512
# Waits before the tries after the first, ±50 %: a store that says 503 wants a pause, and the deadline is near.
_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.4)
# A copy takes the store as long as the object is large.
_COPY_TIMES: Final = 4


class S3Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bucket is, and who we are. Without keys the driver looks for them where AWS puts them."""

    bucket: str
    region: str = "us-east-1"
    endpoint: str | None = None
    # As clients reach it, in signed URLs.
    public_endpoint: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    addressing: Literal["path", "virtual"] = "path"
    # Anything but `when_required` breaks many stores that are not AWS.
    checksums: Literal["when_required", "when_supported"] = "when_required"
    encryption: Literal["", "AES256", "aws:kms"] = ""
    timeout_s: float = 2.5


class S3Store:
    """`async with S3Store(S3Options(bucket="files", …)) as store`.

    `signer`: signs URLs that lead through the hub instead of to the store. Needed where the store cannot be reached
    from outside, and where our credentials would be part of the URL.
    """

    def __init__(self, options: S3Options, *, signer: UrlSigner | None = None, observe: Observe | None = None) -> None:
        self._options = options
        self._bucket = options.bucket
        self._signer = signer
        self._observe = observe
        self._breaker = Breaker()
        self._calls = asyncio.Semaphore(_CALLS)
        self._reads = asyncio.Semaphore(_READS)
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._credentials: Any = None
        self._sealed: dict[str, str] = {"ServerSideEncryption": options.encryption} if options.encryption else {}

    async def __aenter__(self) -> Self:
        # Reads the driver's descriptions from files, a fifth of a second: before there is anybody to wait for us.
        options = self._options
        session = aioboto3.Session(
            aws_access_key_id=options.access_key_id,
            aws_secret_access_key=options.secret_access_key,
            aws_session_token=options.session_token,
            region_name=options.region,
        )
        config = AioConfig(
            signature_version="s3v4",
            s3={"addressing_style": options.addressing, "payload_signing_enabled": False},
            request_checksum_calculation=options.checksums,
            response_checksum_validation=options.checksums,
            connect_timeout=_CONNECT_S,
            read_timeout=options.timeout_s,
            max_pool_connections=_CALLS + _READS,
            # Ours are within the deadline, the driver's are not.
            retries={"mode": "standard", "total_max_attempts": 1},
        )
        try:
            self._client = await self._stack.enter_async_context(
                session.client("s3", endpoint_url=options.endpoint, config=config)
            )
            self._credentials = await session._session.get_credentials()
        except (BotoCoreError, ValueError) as error:
            raise StorageRefused(str(error)) from error
        if self._credentials is None:
            raise StorageRefused("no credentials for the object store")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # -------------------------------------------------------------------------------------------------- whole objects

    async def put(self, key: str, data: bytes, *, content_type: str = OCTETS) -> Stored:
        if len(data) > SMALL_BYTES:
            raise ValueError(f"{len(data)} bytes at once; more than {SMALL_BYTES} go by parts")
        what = {"Key": keys.check(key), "Body": data, "ContentMD5": await _md5(data), "ContentType": content_type}
        await self._call("put_object", {**what, **self._sealed}, _of_object(key))
        return Stored(key, len(data), datetime.now(UTC), content_type)

    async def head(self, key: str) -> Stored:
        found = await self._call("head_object", {"Key": keys.check(key)}, _of_object(key))
        return Stored(key, found["ContentLength"], found["LastModified"], found.get("ContentType", OCTETS))

    async def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        keys.check(key)
        if length == 0:
            await self.head(key)
            return
        reading = _Reading(offset, length)
        failures = 0
        while not reading.done:
            before = reading.at
            try:
                what, give_up = {"Key": key, **reading.request()}, time.monotonic() + self._options.timeout_s
                async with self._place(self._reads, give_up):
                    found = await self._ask("get_object", what, _of_object(key), give_up)
                    async with found["Body"] as body:
                        reading.begins(found)
                        while piece := await self._piece(body):
                            yield reading.took(piece)
                        reading.ended()
            except _Cut as cut:
                # Go on from where it stopped, as long as it goes on at all.
                failures = 1 if reading.at > before else failures + 1
                if failures > 2:
                    raise StorageUnavailable(f"the store breaks off: {cut}") from cut

    async def copy(self, source: str, target: str) -> Stored:
        what = {"Key": keys.check(target), "CopySource": {"Bucket": self._bucket, "Key": keys.check(source)}}
        await self._call("copy_object", {**what, **self._sealed}, _of_object(source), times=_COPY_TIMES)
        return await self.head(target)

    async def move(self, source: str, target: str) -> Stored:
        try:
            moved = await self.copy(source, target)
        except ObjectMissing:
            # Done before, by somebody whose answer was lost.
            return await self.head(target)
        await self.delete(source)
        return moved

    async def delete(self, key: str) -> None:
        try:
            await self._call("delete_object", {"Key": keys.check(key)}, _of_object(key))
        except ObjectMissing:
            return

    async def list(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> Page:
        limit = max(1, min(limit, 1000))
        # StartAfter, not a token of the store's: the cursor is good as long as keys are.
        after = {"StartAfter": cursor} if cursor else {}
        found = await self._call("list_objects_v2", {"Prefix": prefix, "MaxKeys": limit, **after}, _of_bucket)
        items = tuple(Stored(each["Key"], each["Size"], each["LastModified"]) for each in found.get("Contents", ()))
        return Page(items, items[-1].key if items and found.get("IsTruncated") else None)

    # ---------------------------------------------------------------------------------------------------------- parts

    async def begin(self, key: str, *, content_type: str = OCTETS) -> str:
        what = {"Key": keys.check(key), "ContentType": content_type}
        begun = await self._call("create_multipart_upload", {**what, **self._sealed}, _of_bucket)
        return str(begun["UploadId"])

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        if not 1 <= number <= 10_000 or not data:
            raise ValueError("parts are numbered from 1 to 10000 and hold something")
        where = {"Key": keys.check(key), "UploadId": upload_id, "PartNumber": number}
        what = {**where, "Body": data, "ContentMD5": await _md5(data)}
        stored = await self._call("upload_part", what, _of_upload(upload_id))
        return Part(number, stored["ETag"], len(data))

    async def complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> Stored:
        check_parts(parts)
        size = sum(part.size_bytes for part in parts)
        named = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        what = {"Key": keys.check(key), "UploadId": upload_id, "MultipartUpload": {"Parts": named}}
        try:
            await self._call("complete_multipart_upload", what, _of_upload(upload_id), times=_COPY_TIMES)
        except UploadMissing:
            # Completed before, the answer being lost.
            try:
                done = await self.head(key)
            except ObjectMissing:
                done = None
            if done is None or done.size_bytes != size:
                raise
            return done
        return Stored(key, size, datetime.now(UTC))

    async def abort(self, key: str, upload_id: str) -> None:
        try:
            await self._call(
                "abort_multipart_upload", {"Key": keys.check(key), "UploadId": upload_id}, _of_upload(upload_id)
            )
        except UploadMissing:
            return

    async def uploads(self, prefix: str = "", *, cursor: str | None = None, limit: int = 1000) -> UploadPage:
        markers = dict(zip(("KeyMarker", "UploadIdMarker"), (cursor or "").split("\n"), strict=False)) if cursor else {}
        limit = max(1, min(limit, 1000))
        what = {"Prefix": prefix, "MaxUploads": limit, **markers}
        found = await self._call("list_multipart_uploads", what, _of_bucket)
        items = tuple(Upload(each["Key"], each["UploadId"], each["Initiated"]) for each in found.get("Uploads", ()))
        more = items and found.get("IsTruncated")
        return UploadPage(items, f"{items[-1].key}\n{items[-1].upload_id}" if more else None)

    # ----------------------------------------------------------------------------------------------------- signed URLs

    async def sign_get(self, key: str, *, ttl_s: int, content_type: str, disposition: str) -> Signed:
        if self._signer is not None:
            return self._signer.get(key, ttl_s=ttl_s, content_type=content_type, disposition=disposition)
        shown = {"response-content-type": content_type, "response-content-disposition": disposition}
        return await self._presigned("GET", key, ttl_s, shown, {})

    async def sign_put(self, key: str, *, ttl_s: int, content_type: str, size_bytes: int) -> Signed:
        if self._signer is not None:
            return self._signer.put(key, ttl_s=ttl_s, content_type=content_type, size_bytes=size_bytes)
        headers = {"Content-Type": content_type}
        if self._options.encryption:
            headers["x-amz-server-side-encryption"] = self._options.encryption
        # Signed but not to be set by hand: every client sends the length by itself.
        signed = await self._presigned("PUT", key, ttl_s, {}, {**headers, "Content-Length": str(size_bytes)})
        return msgspec.structs.replace(signed, headers=headers)

    async def _presigned(
        self, method: Literal["GET", "PUT"], key: str, ttl_s: int, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> Signed:
        # The driver's own way would need a second client for the public endpoint, with 24 MB of descriptions.
        url = self._public_url(keys.check(key))
        if query:
            url += "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        frozen: ReadOnlyCredentials = await self._credentials.get_frozen_credentials()
        request = AWSRequest(method=method, url=url, headers=dict(headers))
        S3SigV4QueryAuth(frozen, "s3", self._options.region, expires=ttl_s).add_auth(request)
        expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=ttl_s)
        return Signed(url=request.url, expires_at=expires_at, method=method)

    def _public_url(self, key: str) -> str:
        options = self._options
        endpoint = options.public_endpoint or options.endpoint or f"https://s3.{options.region}.amazonaws.com"
        if options.addressing == "path":
            return f"{endpoint.rstrip('/')}/{self._bucket}/{key}"
        parts = urlsplit(endpoint)
        return f"{parts.scheme}://{self._bucket}.{parts.netloc}{parts.path.rstrip('/')}/{key}"

    async def ping(self) -> None:
        await self._call("head_bucket", {}, _of_bucket)

    # ---------------------------------------------------------------------------------------------------------- calls

    async def _call(self, name: str, what: Mapping[str, Any], missing: Missing, *, times: int = 1) -> Any:
        """One operation, tried again within the deadline where that may help. Raises what `_translated` says."""
        give_up = time.monotonic() + self._options.timeout_s * times
        async with self._place(self._calls, give_up):
            return await self._ask(name, what, missing, give_up)

    @asynccontextmanager
    async def _place(self, places: asyncio.Semaphore, give_up: float) -> AsyncGenerator[None, None]:
        """One of them, waited for until then. That there is none says nothing of the store: the breaker hears nothing.

        Raises StorageUnavailable.
        """
        try:
            async with asyncio.timeout(give_up - time.monotonic()):
                await places.acquire()
        except TimeoutError:
            raise StorageUnavailable("this node asks too much of the store at once") from None
        try:
            yield
        finally:
            places.release()

    async def _ask(self, name: str, what: Mapping[str, Any], missing: Missing, give_up: float) -> Any:
        started = time.monotonic()
        outcome = "StorageUnavailable"
        try:
            self._breaker.admit(started)
            try:
                async with asyncio.timeout(give_up - started):
                    answer = await self._try(name, missing, give_up, what)
            except (TimeoutError, StorageUnavailable) as error:
                self._breaker.failed(time.monotonic())
                if isinstance(error, StorageUnavailable):
                    raise
                raise StorageUnavailable(f"no answer within {give_up - started:.1f} s") from error
            except StorageError as error:
                # It answered.
                self._breaker.succeeded()
                outcome = type(error).__name__
                raise
            self._breaker.succeeded()
            outcome = "ok"
            return answer
        finally:
            if self._observe is not None:
                self._observe(name, outcome, time.monotonic() - started)

    async def _try(self, name: str, missing: Missing, give_up: float, what: Mapping[str, Any]) -> Any:
        for pause_s in (*_PAUSES_S, None):
            try:
                return await self._once(getattr(self._client, name)(Bucket=self._bucket, **what), missing)
            except StorageUnavailable:
                if pause_s is None or time.monotonic() + pause_s > give_up:
                    raise
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
        raise AssertionError("the last pause is None")

    async def _once(self, call: Coroutine[Any, Any, Any], missing: Missing) -> Any:
        try:
            return await call
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageRefused(str(error)) from error
        except ClientError as error:
            raise _translated(error, missing) from error
        except (BotoCoreError, aiohttp.ClientError, OSError) as error:
            raise StorageUnavailable(f"{type(error).__name__}: {str(error)[:200]}") from error

    async def _piece(self, body: Any) -> bytes:
        try:
            async with asyncio.timeout(self._options.timeout_s):
                piece: bytes = await body.content.read(PIECE_BYTES)
                return piece
        except (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _Cut(f"{type(error).__name__}") from error


class _Cut(Exception):
    """A body that ended before its end."""


class _Reading:
    """How far a read has come, and what to ask for next."""

    def __init__(self, offset: int, length: int | None) -> None:
        self.at = offset
        self._end = None if length is None else offset + length
        self._etag: str | None = None
        self.done = False

    def request(self) -> dict[str, str]:
        # An empty object has no byte 0 to ask for.
        wanted = {} if self._whole else {"Range": f"bytes={self.at}-{'' if self._end is None else self._end - 1}"}
        # What goes on must be the same object.
        return {**wanted, **({"IfMatch": self._etag} if self._etag else {})}

    @property
    def _whole(self) -> bool:
        return self.at == 0 and self._end is None

    def begins(self, found: Mapping[str, Any]) -> None:
        """Raises StorageRefused where the answer is not what was asked for: some servers ignore Range, and their whole
        object would be taken for its end."""
        if not self._whole and not str(found.get("ContentRange", "")).startswith(f"bytes {self.at}-"):
            raise StorageRefused("the store answers a range with something else")
        self._etag = found.get("ETag")
        self._end = self.at + int(found["ContentLength"])

    def took(self, piece: bytes) -> bytes:
        self.at += len(piece)
        return piece

    def ended(self) -> None:
        if self._end is None or self.at != self._end:
            raise _Cut(f"at byte {self.at} instead of {self._end}")
        self.done = True


Missing = Callable[[str], StorageError]
"""What a 404 means where it does not say: an object, or an upload."""


def _of_object(key: str) -> Missing:
    return lambda _code: ObjectMissing(key)


def _of_upload(upload_id: str) -> Missing:
    return lambda _code: UploadMissing(upload_id)


def _of_bucket(code: str) -> StorageError:
    return StorageRefused(f"no such bucket ({code or 404})")


_BAD_PARTS: Final = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall"})
# 400s that are no fault of ours.
_AGAIN: Final = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "SlowDown"})


def _translated(error: ClientError, missing: Missing) -> StorageError:
    answer: Mapping[str, Any] = error.response
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # Supabase's errors have an XML namespace, which puts the code where the driver does not look.
    code = str(answer.get("Error", {}).get("Code") or answer.get("Code") or "")
    if status >= 500 or status == 429 or code in _AGAIN or status == 0:
        return StorageUnavailable(f"{code or 'error'} ({status})")
    if code == "NoSuchBucket":
        return _of_bucket(code)
    if code == "NoSuchUpload":
        return UploadMissing(code)
    if code in _BAD_PARTS:
        return PartsMismatch(code)
    if status == 404:
        return missing(code)
    if status == 416:
        return RangeInvalid("behind the end of the object")
    if status == 412:
        return ObjectMissing("replaced while it was read")
    return StorageRefused(f"{code or 'refused'} ({status})")


async def _md5(data: bytes) -> str:
    """The one checksum that all stores know; ten milliseconds for a part, so not on the loop."""
    digest = await asyncio.to_thread(lambda: hashlib.md5(data, usedforsecurity=False).digest())
    return base64.b64encode(digest).decode()
