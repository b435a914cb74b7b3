"""An authority of one's own, for development and small installations: a key, and certificates for daemons.

In: a folder, a trust domain, names. Out: `ca.crt`, `ca.key`, and a pair for each daemon. What always holds: keys are
written for their owner alone; each file is exchanged whole; an authority that is there is used again, so that issuing
anew is how certificates are rotated. Where there is an authority already (cert-manager, SPIRE, a company's), it
issues certificates with the same names instead, and none of this is needed.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.errors import InvalidRequest
from runtime.tls import DNS_NAME, PeerName, name_of

AUTHORITY_DAYS = 3650
CLOCK_SKEW = timedelta(minutes=5)
_BOTH_SIDES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """What a certificate says."""

    file: str
    name: str
    hosts: tuple[str, ...]
    is_authority: bool
    not_before: datetime
    not_after: datetime
    fingerprint: str


class Authority:
    """A key that signs. `folder` holds it as ca.crt and ca.key."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self._certificate = certificate
        self._key = key

    def __repr__(self) -> str:
        return f"Authority({self.domain!r})"

    @property
    def domain(self) -> str:
        """The trust domain that it speaks for."""
        uris = self._certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = uris.get_values_for_type(x509.UniformResourceIdentifier)
        return uri.removeprefix("spiffe://")

    @classmethod
    def open_or_make(cls, folder: Path, domain: str) -> Authority:
        """The authority of a folder. Raises InvalidRequest when the one there is of another domain, or damaged."""
        if not DNS_NAME.fullmatch(domain):
            raise InvalidRequest(f"trust domain {domain!r}: write a lower-case DNS name, for example speakerd.internal")
        cert, key = folder / "ca.crt", folder / "ca.key"
        if cert.exists() != key.exists():
            raise InvalidRequest(
                f"{folder} holds one of ca.crt and ca.key without the other: restore it, or begin anew"
            )
        if not cert.exists():
            return cls._made(folder, domain)
        try:
            found = cls(folder, x509.load_pem_x509_certificate(cert.read_bytes()), _private(key.read_bytes()))
            if found.domain != domain:
                raise InvalidRequest(f"the authority in {folder} is of trust domain {found.domain!r}, not {domain!r}")
        except (ValueError, TypeError, x509.ExtensionNotFound):
            raise InvalidRequest(f"ca.crt or ca.key in {folder} is damaged: restore it, or begin anew") from None
        return found

    @classmethod
    def _made(cls, folder: Path, domain: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(f"spiffe://{domain}")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"speakerd authority of {domain}"[:64])])
        certificate = (
            _builder(subject, subject, key.public_key(), timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / "ca.key", _pem(key))
        write_public(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))
        return cls(folder, certificate, key)

    def issue(self, role: str, peer_id: str, hosts: Sequence[str], lifetime: timedelta) -> tuple[bytes, bytes]:
        """A certificate and its key, PEM. hosts: DNS names and addresses under which it is reached beside its own."""
        if not DNS_NAME.fullmatch(peer_id) or len(peer_id) > 63:
            raise InvalidRequest(
                f"{role} id {peer_id!r}: with TLS an id is a lower-case DNS name of at most 63 characters"
            )
        name = PeerName(self.domain, role, peer_id)
        key = ec.generate_private_key(ec.SECP256R1())
        sans = [x509.UniformResourceIdentifier(name.uri), x509.DNSName(name.dns), *map(_host, hosts)]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}/{peer_id}"[:64])])
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(is_authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(sans), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _pem(key)

    def issue_files(self, role: str, peer_id: str, hosts: Sequence[str], lifetime: timedelta) -> tuple[Path, Path]:
        """Issue into the folder, as ROLE-ID.crt and ROLE-ID.key. The key goes first: half an exchange fits nothing."""
        certificate, key = self.issue(role, peer_id, hosts, lifetime)
        cert_file, key_file = self.folder / f"{role}-{peer_id}.crt", self.folder / f"{role}-{peer_id}.key"
        write_private(key_file, key)
        write_public(cert_file, certificate)
        return cert_file, key_file


def describe(path: Path) -> CertificateReport:
    """What a certificate says. Raises InvalidRequest when the file holds none."""
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, IndexError, x509.ExtensionNotFound):
        raise InvalidRequest(f"{path} holds no certificate of a daemon") from None
    uris = sans.get_values_for_type(x509.UniformResourceIdentifier)
    return CertificateReport(
        file=path.name,
        name=(uris[0] if uris else "") if constraints.ca else name_of(certificate).uri,
        hosts=(
            *sans.get_values_for_type(x509.DNSName),
            *(str(address) for address in sans.get_values_for_type(x509.IPAddress)),
        ),
        is_authority=bool(constraints.ca),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a file whole, readable by its owner alone."""
    _write(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Write a file whole, readable by all."""
    _write(path, data, 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not DNS_NAME.fullmatch(host):
            raise InvalidRequest(f"host {host!r}: write a lower-case DNS name or an address") from None
        return x509.DNSName(host)


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("another kind of key")  # noqa: TRY004 - told as a damaged file
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
