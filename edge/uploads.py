"""Bodies: how large one may be, how slow, and how much of all of them lies in memory.

In: an ASGI request. Out: its bytes, or TooLarge as soon as they are too many, whatever Content-Length said. Forms are
held in memory, never in files: what is sent is people's voices, and it lives no longer than the request.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from edge.failures import FieldError, InvalidFields
from runtime.errors import InvalidRequest, Overloaded, TimedOut, TooLarge, UnsupportedMedia

BODY_BYTES_MAX = 1 << 20
"""How large a body may be where a route does not say otherwise."""
IDLE_S_MAX = 30.0
"""How long a sender may be silent within a body."""
BYTES_MIN = 1_024
"""Whoever was waited for IDLE_S_MAX has sent so much, or is let go: a byte now and then is as good as none."""
METER = "speakerd.body"
UPLOAD_BYTES_MAX = 512 << 20
"""How much of all forms may lie in memory at once."""
FIELDS_MAX = 64
FIELD_BYTES_MAX = 64 << 10


class BodyMeter:
    """Counts what arrives of one body."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._declared = _content_length(scope)
        self._bytes_max = BODY_BYTES_MAX
        self._seen = 0
        self._ended = False
        # How long was waited for what came last, together less than BYTES_MIN; our own work is not counted.
        self._waited_s, self._came_bytes = 0.0, 0

    def allow(self, bytes_max: int) -> None:
        """How large this body may be."""
        self._bytes_max = bytes_max

    @property
    def size_max(self) -> int:
        """What is declared, or what is allowed where that is less or nothing is declared."""
        return min(self._declared, self._bytes_max) if self._declared >= 0 else self._bytes_max

    async def __call__(self) -> Message:
        """The next message. Raises TooLarge, or TimedOut when the sender is silent in the middle, or nearly so."""
        if self._ended:
            return await self._receive()
        if self._declared > self._bytes_max:
            raise self._too_large()
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        try:
            async with asyncio.timeout(IDLE_S_MAX):
                message = await self._receive()
        except TimeoutError:
            raise TimedOut(f"nothing of the body arrived for {IDLE_S_MAX:.0f} s; send it again") from None
        if message["type"] == "http.request":
            num_bytes = len(message.get("body", b""))
            self._seen += num_bytes
            self._ended = not message.get("more_body", False)
            if self._seen > self._bytes_max:
                raise self._too_large()
            self._require_progress(num_bytes, now_s() - began_s)
        else:
            self._ended = True
        return message

    def _require_progress(self, num_bytes: int, waited_s: float) -> None:
        self._waited_s, self._came_bytes = self._waited_s + waited_s, self._came_bytes + num_bytes
        if self._came_bytes >= BYTES_MIN:
            self._waited_s, self._came_bytes = 0.0, 0
        elif self._waited_s > IDLE_S_MAX and not self._ended:
            raise TimedOut(f"less than {BYTES_MIN} bytes of the body arrived in {IDLE_S_MAX:.0f} s; send it again")

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is too large: at most {self._bytes_max} bytes here")


class UploadBudget:
    """How much of all forms lies in memory. The last quarter of it is nobody's who holds the rest."""

    def __init__(self, bytes_max: int = UPLOAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._one_tenant_max = bytes_max - bytes_max // 4
        self._held_by: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"UploadBudget({self._held_by.total()} of {self._bytes_max} bytes)"

    @contextmanager
    def hold(self, num_bytes: int, tenant_id: str) -> Iterator[None]:
        """Room for so much of a tenant's while the block lasts. Raises Overloaded."""
        is_full = self._held_by.total() + num_bytes > self._bytes_max
        if is_full or self._held_by[tenant_id] + num_bytes > self._one_tenant_max:
            raise Overloaded("too many uploads are under way; try again", retry_after_s=2.0)
        self._held_by[tenant_id] += num_bytes
        try:
            yield
        finally:
            self._held_by[tenant_id] -= num_bytes
            if not self._held_by[tenant_id]:
                del self._held_by[tenant_id]


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file of a form. filename and content_type: as the client says, "" when it does not."""

    filename: str
    content_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields and files, each name once."""

    fields: dict[str, str] = field(repr=False)
    files: dict[str, UploadedFile] = field(repr=False)


@asynccontextmanager
async def multipart(request: Request, budget: UploadBudget, *, files_max: int, bytes_max: int) -> AsyncIterator[Form]:
    """The request's form, held in memory while the block lasts.

    Raises:
        UnsupportedMedia: The body is no multipart/form-data.
        TooLarge: The whole body is over bytes_max.
        Overloaded: Too much is being uploaded by all.
        InvalidRequest: The form is malformed, or a name comes twice.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UnsupportedMedia("send multipart/form-data")
    if _charset(request) not in ("", "utf-8", "utf8", "us-ascii"):
        # Others make texts that cannot be written down again, or fail as they are read.
        raise UnsupportedMedia("send the form's texts in UTF-8")
    allow_body(request, bytes_max)
    principal = getattr(request.state, "principal", None)
    with budget.hold(body_size(request), "" if principal is None else principal.tenant_id):
        parser = _InMemoryParser(
            request.headers, request.stream(), max_files=files_max, max_fields=FIELDS_MAX, max_part_size=FIELD_BYTES_MAX
        )
        try:
            parsed = await parser.parse()
        except MultiPartException as error:
            raise InvalidRequest(f"the form is malformed: {error.message}") from None
        except KeyError:
            raise InvalidRequest("the form is malformed: its Content-Type names no boundary") from None
        try:
            form = Form({}, {})
            for name, value in parsed.multi_items():
                if name in form.fields or name in form.files:
                    raise InvalidFields(FieldError(name[:64], "comes twice"))
                if isinstance(value, UploadFile):
                    form.files[name] = UploadedFile(value.filename or "", value.content_type or "", await value.read())
                else:
                    form.fields[name] = value
        finally:
            await parsed.close()
        yield form


def allow_body(request: Request, bytes_max: int) -> None:
    """How large this request's body may be; to be said before it is read."""
    meter: BodyMeter = request.scope[METER]
    meter.allow(bytes_max)


def body_size(request: Request) -> int:
    """How large a body may become, as far as one can tell before it is read."""
    meter: BodyMeter = request.scope[METER]
    return meter.size_max


def _charset(request: Request) -> str:
    """What the form says that its texts are written in; "" where it does not."""
    _, parameters = parse_options_header(request.headers.get("content-type"))
    return parameters.get(b"charset", b"").decode("latin-1").strip().lower()


def _content_length(scope: Scope) -> int:
    """What the header says, or -1."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and len(value) < 16:
            return int(value)
    return -1


class _InMemoryParser(MultiPartParser):
    # The body meter bounds the whole; a temporary file would put somebody's voice on a disk.
    spool_max_size = sys.maxsize
