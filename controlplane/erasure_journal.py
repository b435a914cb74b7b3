"""The erasure journal: what was erased, kept outside the database and outside every backup of it.

In: records of erasures, appended before their requests are answered. Out: all of them, when a control plane starts, so
that a database that was restored from an old backup erases again what it has forgotten to have erased. What always
holds: what `append` returned from is durable; a record names a voice by a keyed hash alone; a record that was changed,
or taken out of the middle of a file, is noticed.

A file is framed: a line that says what it is, its id, then for each record its length (4 bytes, big-endian), 32 bytes
of HMAC-SHA256 over the MAC before and the record, and the record. Appending takes a lock on the file, so that several
control planes may share one on a file system that knows such locks; otherwise they share a folder of an object store,
where each batch of records is an object of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hmac
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from controlplane.journal_records import Erased, Mark, Proven, Record, decoded, encoded
from controlplane.outside import RemoteObjects, fsync_folder, is_url
from runtime.errors import Conflict, InvalidRequest, Unavailable

__all__ = ["DAMAGED", "Erased", "FileJournal", "Journal", "Mark", "ObjectJournal", "Proven", "Record", "open_journal"]

MAGIC = b"speakerd erasure journal 1\n"
ID_CHARACTERS = 32
HEADER_BYTES = len(MAGIC) + ID_CHARACTERS + 1
MAC_BYTES = 32
FRAME_BYTES = 4 + MAC_BYTES
RECORD_BYTES_MAX = 1 << 16
LOCK_S = 10.0
"""How long the lock of the file is waited for: a control plane that froze as it wrote keeps it until it is thawed."""
LOCK_LOOK_S = 0.01
DAMAGED = (
    "the erasure journal is damaged at byte {at}: put back a whole copy of it, or start with --accept-journal-loss, "
    "which is written into the audit"
)


class Journal(Protocol):
    """One journal, opened. journal_id: random, made with it."""

    journal_id: str

    async def append(self, records: Sequence[Record]) -> None:
        """Durable when it returns. Raises Unavailable when the place is away or full."""
        ...

    async def read(self) -> list[Record]:
        """Every record, those of one writer in their order. Raises InvalidRequest when one is damaged, Unavailable."""
        ...


async def open_journal(where: str, key: bytes, *, make: bool) -> Journal | None:
    """The journal at a path or URL; None when there is none and it is not to be made.

    key: what records are authenticated with. Raises InvalidRequest when it is no journal, Unavailable when it cannot be
    read.
    """
    if is_url(where):
        return await _open_objects(where, key, make=make)
    return await asyncio.to_thread(_open_file, where, key, make=make)


class FileJournal:
    """A file that only grows."""

    def __init__(self, path: Path, key: bytes, journal_id: str) -> None:
        self.journal_id = journal_id
        self._path = path
        self._key = key
        self._order = asyncio.Lock()
        # Up to where the file has been read and found whole, and the MAC that the next record goes on from.
        self._end = HEADER_BYTES
        self._last = journal_id.encode()
        self._records: list[Record] = []

    def __repr__(self) -> str:
        return f"FileJournal({self.journal_id[:8]}, {self._end} bytes)"

    async def append(self, records: Sequence[Record]) -> None:
        """Append and flush to the disk."""
        async with self._order:
            await asyncio.to_thread(self._append, records)

    async def read(self) -> list[Record]:
        """Every record of the file."""
        async with self._order:
            return await asyncio.to_thread(self._read)

    def _append(self, records: Sequence[Record]) -> None:
        try:
            # Without O_CREAT: a journal that was taken away is noticed, not begun anew.
            number = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"the erasure journal is away: {error.strerror}", retry_after_s=1.0) from None
        try:
            _lock(number, fcntl.LOCK_EX)
            # What another control plane has appended comes first; a record that was cut off was never relied upon.
            self._catch_up(number, keep=False)
            end, last = self._end, self._last
            block = bytearray()
            for record in records:
                body = encoded(record)
                last = _mac(self._key, last, body)
                block += len(body).to_bytes(4, "big") + last + body
            os.ftruncate(number, end)
            written = 0
            while written < len(block):
                written += os.pwrite(number, block[written:], end + written)
            os.fsync(number)
            self._end, self._last = end + len(block), last
        except OSError as error:
            raise Unavailable(f"the erasure journal cannot be written: {error.strerror}", retry_after_s=1.0) from None
        finally:
            os.close(number)

    def _read(self) -> list[Record]:
        self._end, self._last, self._records = HEADER_BYTES, self.journal_id.encode(), []
        try:
            number = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"the erasure journal cannot be read: {error.strerror}") from None
        try:
            _lock(number, fcntl.LOCK_SH)
            self._catch_up(number, keep=True)
        except OSError as error:
            raise Unavailable(f"the erasure journal cannot be read: {error.strerror}") from None
        finally:
            found, self._records = self._records, []
            os.close(number)
        return found

    def _catch_up(self, number: int, *, keep: bool) -> None:
        with os.fdopen(os.dup(number), "rb") as file:
            total = os.fstat(number).st_size
            file.seek(self._end)
            while self._end + FRAME_BYTES <= total:
                frame = file.read(FRAME_BYTES)
                length = int.from_bytes(frame[:4], "big")
                if length > RECORD_BYTES_MAX or length == 0:
                    raise InvalidRequest(DAMAGED.format(at=self._end))
                if self._end + FRAME_BYTES + length > total:
                    return  # cut off as it was written
                body = file.read(length)
                mac = _mac(self._key, self._last, body)
                if not hmac.compare_digest(mac, frame[4:]):
                    raise InvalidRequest(DAMAGED.format(at=self._end))
                if keep:
                    self._records.append(decoded(body))
                self._end, self._last = self._end + FRAME_BYTES + length, mac

    def take_whole_part(self) -> list[Record]:
        """For a damaged file that its operator gives up: the records before the damage."""
        records: list[Record] = []
        self._end, self._last, self._records = HEADER_BYTES, self.journal_id.encode(), records
        with self._path.open("rb") as file:
            try:
                self._catch_up(file.fileno(), keep=True)
            except InvalidRequest:
                return records
        return records


class ObjectJournal:
    """Objects of an object store, one a batch. Each is authenticated; that one is missing among them is not noticed."""

    def __init__(self, store: RemoteObjects, key: bytes, journal_id: str) -> None:
        self.journal_id = journal_id
        self._store = store
        self._key = key

    def __repr__(self) -> str:
        return f"ObjectJournal({self.journal_id[:8]})"

    async def append(self, records: Sequence[Record]) -> None:
        """Put one object."""
        body = b"\n".join(encoded(record) for record in records)
        # Names sort by the time of writing, which orders the records of one writer.
        name = f"records/{time.time_ns():020d}-{secrets.token_hex(8)}"
        await self._store.put(name, _mac(self._key, self.journal_id.encode() + name.encode(), body) + body)

    async def read(self) -> list[Record]:
        """Get every object."""
        records: list[Record] = []
        for name in await self._store.names():
            if not name.startswith("records/"):
                continue
            content = await self._store.get(name)
            mac, body = content[:MAC_BYTES], content[MAC_BYTES:]
            if not hmac.compare_digest(mac, _mac(self._key, self.journal_id.encode() + name.encode(), body)):
                raise InvalidRequest(f"the erasure journal is damaged at {name}: put back a whole copy of it")
            records += [decoded(line) for line in body.split(b"\n") if line]
        return records


def set_aside(where: str) -> Path:
    """Give a journal that its operator gives up another name, so that a new one can be made; the name."""
    path = Path(where).expanduser()
    aside = path.with_name(f"{path.name}.given-up-{secrets.token_hex(4)}")
    path.rename(aside)
    fsync_folder(path.parent)
    return aside


def _open_file(where: str, key: bytes, *, make: bool) -> FileJournal | None:
    path = Path(where).expanduser()
    try:
        head = path.read_bytes()[:HEADER_BYTES] if path.exists() else None
        if head is None and make:
            _make_file(path)
            head = path.read_bytes()[:HEADER_BYTES]
    except OSError as error:
        raise Unavailable(f"the erasure journal {path} cannot be opened: {error.strerror}") from None
    if head is None:
        return None
    journal_id = head[len(MAGIC) : -1].decode(errors="replace")
    if not head.startswith(MAGIC) or len(head) < HEADER_BYTES:
        raise InvalidRequest(f"{path} is not an erasure journal: name another path as erasure_journal")
    return FileJournal(path, key, journal_id)


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(number, "wb") as file:
        file.write(MAGIC + secrets.token_hex(ID_CHARACTERS // 2).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # another control plane made it in the meantime
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


async def _open_objects(url: str, key: bytes, *, make: bool) -> ObjectJournal | None:
    store = RemoteObjects(url)
    names = await store.names()
    if "journal.json" not in names:
        if any(name.startswith("records/") for name in names):
            raise InvalidRequest("the erasure journal lost its journal.json: put it back")
        if not make:
            return None
        made = json.dumps({"journal_id": secrets.token_hex(ID_CHARACTERS // 2)}).encode()
        with contextlib.suppress(Conflict):  # another control plane may make it in the meantime
            await store.put("journal.json", made)
    said: dict[str, Any] = json.loads(await store.get("journal.json"))
    return ObjectJournal(store, key, str(said["journal_id"]))


def _lock(number: int, how: int) -> None:
    """Lock an open file, on a thread. Raises OSError when somebody else keeps it locked."""
    until_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(number, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise OSError(errno.ETIMEDOUT, f"somebody keeps it locked for more than {LOCK_S:g} s") from None
            time.sleep(LOCK_LOOK_S)
        else:
            return


def _mac(key: bytes, before: bytes, body: bytes) -> bytes:
    return hmac.digest(key, len(before).to_bytes(4, "big") + before + body, "sha256")
