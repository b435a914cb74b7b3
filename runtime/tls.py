"""TLS between daemons: who somebody is, as the certificate says, and files that may be exchanged while all runs.

In: three PEM files (certificate chain, key, authority). Out: credentials for servers and channels, and the names of
peers. What always holds: a daemon is `spiffe://DOMAIN/ROLE/ID` by one URI in its certificate, and is reached under the
DNS name `ID.ROLE.DOMAIN` beside it, so that a caller checks whom it reaches and not only where; files that were
exchanged count from the next connection on, and files that do not fit together change nothing.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from grpc import aio

from runtime.errors import Denied, InvalidRequest, Unauthenticated
from runtime.logs import get_logger

NODE, CONTROL_PLANE, EDGE = "node", "controlplane", "edge"
ROLES = (NODE, CONTROL_PLANE, EDGE)
DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_URI = re.compile(rf"spiffe://(?P<domain>[^/]+)/(?P<role>{'|'.join(ROLES)})/(?P<id>[^/]+)")
_SANS = "x509_subject_alternative_name"


@dataclass(frozen=True, slots=True)
class PeerName:
    """Who a certificate is for."""

    domain: str
    role: str
    id: str

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"spiffe://{self.domain}/{self.role}/{self.id}"

    @property
    def dns(self) -> str:
        """The name under which it is reached, whatever its address."""
        return dns_name(self.domain, self.role, self.id)


def dns_name(domain: str, role: str, peer_id: str = "") -> str:
    """The name under which a peer is reached. All control planes share one: whoever asks means any of them."""
    return f"{role}.{domain}" if role == CONTROL_PLANE else f"{peer_id}.{role}.{domain}"


def parse_uri(uri: str) -> PeerName | None:
    """The name in a SPIFFE URI; None if it is not one of ours."""
    found = _URI.fullmatch(uri)
    return PeerName(found["domain"], found["role"], found["id"]) if found else None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a daemon's certificate chain, its key, and the certificate of the authority lie."""

    cert: Path
    key: Path
    ca: Path


class Tls:
    """A daemon's identity, and whom it trusts. Safe to use from any thread."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises InvalidRequest, naming the file, when they do not make an identity."""
        self._files = files
        self._lock = threading.Lock()
        self._stamp = self._stamped()
        self._read = _read(files)
        self._version = 0

    def __repr__(self) -> str:
        return f"Tls({self.name.uri}, version {self._version})"

    @property
    def name(self) -> PeerName:
        """Who we are."""
        return self._read.name

    @property
    def expires_at_s(self) -> float:
        """When our certificate expires, Unix time."""
        return self._refresh().expires_at_s

    @property
    def version(self) -> int:
        """Grows each time other files are found: what was made of the former ones is to be made anew."""
        self._refresh()
        return self._version

    @property
    def authority(self) -> bytes:
        """The certificates whose holders we trust, PEM."""
        return self._refresh().authority

    def server_credentials(self, *, is_public: bool = False) -> grpc.ServerCredentials:
        """For a server that asks every client for a certificate of the authority, or, when it is public, none."""
        served = self._served(is_public)
        given = [self._version]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # gRPC asks, on a thread of its own, at each connection.
            version = self.version
            if version == given[0]:
                return None
            given[0] = version
            return self._served(is_public)

        # The stubs know nothing of None, which is how gRPC is told that nothing has changed.
        fetcher: Any = fetch
        return grpc.dynamic_ssl_server_credentials(served, fetcher, require_client_authentication=not is_public)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel that shows our certificate."""
        read = self._refresh()
        return grpc.ssl_channel_credentials(read.authority, read.key, read.chain)

    def peer(self, context: aio.ServicerContext[Any, Any]) -> PeerName:
        """Who calls. Raises Unauthenticated unless the certificate names somebody of our trust domain."""
        sans = context.auth_context().get(_SANS, ())
        names = [name for san in sans if (name := parse_uri(san.decode(errors="replace"))) is not None]
        for name in names:
            if name.domain == self.name.domain:
                return name
        raise Unauthenticated(
            f"the client's certificate names nobody of spiffe://{self.name.domain}/: "
            "it needs a URI like spiffe://DOMAIN/node/ID among its alternative names"
        )

    def require_role(self, context: aio.ServicerContext[Any, Any], *roles: str) -> PeerName:
        """Who calls, if it has one of these roles. Raises Unauthenticated, or Denied for another role."""
        peer = self.peer(context)
        if peer.role not in roles:
            raise Denied(f"this call is for {' or '.join(roles)}: the certificate says {peer.role}/{peer.id}")
        return peer

    def _served(self, is_public: bool) -> grpc.ServerCertificateConfiguration:
        read = self._refresh()
        return grpc.ssl_server_certificate_configuration(
            [(read.key, read.chain)], root_certificates=None if is_public else read.authority
        )

    def _refresh(self) -> _Read:
        with self._lock:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reread()
            return self._read

    def _reread(self) -> None:
        try:
            read = _read(self._files, expected=self._read.name)
        except InvalidRequest as error:
            # Half of an exchange, or a mistake: what was good stays until there is something else.
            get_logger().error("tls.not_reloaded", reason=str(error))
            return
        if read != self._read:
            self._read = read
            self._version += 1
            get_logger().info("tls.reloaded", name=read.name.uri, version=self._version)

    def _stamped(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(path) for path in (self._files.cert, self._files.key, self._files.ca))


@dataclass(frozen=True, slots=True, repr=False)
class _Read:
    name: PeerName
    chain: bytes
    key: bytes
    authority: bytes
    expires_at_s: float


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(files: TlsFiles, *, expected: PeerName | None = None) -> _Read:
    chain, key, authority = _content(files.cert), _content(files.key), _content(files.ca)
    if files.key.stat().st_mode & 0o077:
        raise InvalidRequest(f"{files.key.name} can be read by other users: chmod 600 it")
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        authorities = x509.load_pem_x509_certificates(authority)
        own = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError, IndexError):
        raise InvalidRequest(
            f"{files.cert.name}, {files.key.name}, {files.ca.name}: PEM files of a certificate, its key without a "
            "password, and the authority are needed"
        ) from None
    if _spki(leaf.public_key()) != _spki(own):
        raise InvalidRequest(f"{files.key.name} is not the key of {files.cert.name}")
    if len(x509.load_pem_x509_certificates(chain)) == 1 and not any(_issued(leaf, ca) for ca in authorities):
        raise InvalidRequest(f"{files.cert.name} is not signed by {files.ca.name}")
    if leaf.not_valid_after_utc <= datetime.now(UTC):
        raise InvalidRequest(f"{files.cert.name} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it")
    name = name_of(leaf)
    if expected is not None and name != expected:
        raise InvalidRequest(f"{files.cert.name} is for {name.uri} now: start again to be somebody else")
    return _Read(name, chain, key, authority, leaf.not_valid_after_utc.timestamp())


def name_of(certificate: x509.Certificate) -> PeerName:
    """Whom a certificate is for. Raises InvalidRequest when it is for nobody of ours."""
    try:
        sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        sans = x509.SubjectAlternativeName([])
    for uri in sans.get_values_for_type(x509.UniformResourceIdentifier):
        if (name := parse_uri(uri)) is not None:
            return name
    raise InvalidRequest("the certificate has no URI like spiffe://DOMAIN/node/ID among its alternative names")


def _issued(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path.name}: {error.strerror}") from None


def named_address(name: str, address: str) -> str:
    """An address together with the DNS name that the certificate there has to show: "NAME@HOST:PORT"."""
    return f"{name}@{address}" if name else address


def split_address(named: str) -> tuple[str, str]:
    """The name, empty if none was given, and the address."""
    name, _, address = named.rpartition("@")
    return name, address
