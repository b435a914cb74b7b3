"""Who may call whom, as certificates say: real handshakes over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import typer
from grpc import aio
from typer.testing import CliRunner

from runtime.certificates import Authority, describe, write_private, write_public
from runtime.commands import register
from runtime.errors import InvalidRequest
from runtime.grpc_server import bind, new_server, open_channel
from runtime.tls import Tls, TlsFiles, named_address, parse_uri, split_address
from speakerd.v1 import node_pb2, node_pb2_grpc

DAY = timedelta(days=1)


def pair(authority: Authority, role: str, peer_id: str, lifetime: timedelta = DAY) -> Tls:
    cert, key = authority.issue_files(role, peer_id, ["127.0.0.1"], lifetime)
    return Tls(TlsFiles(cert, key, authority.folder / "ca.crt"))


class Asked(node_pb2_grpc.NodeServicer):
    """Says who called, if it is a control plane."""

    def __init__(self, tls: Tls) -> None:
        self.tls = tls

    async def Describe(
        self, request: node_pb2.DescribeRequest, context: aio.ServicerContext
    ) -> node_pb2.DescribeResponse:
        return node_pb2.DescribeResponse(node_id=self.tls.require_role(context, "controlplane").uri)


@asynccontextmanager
async def served(tls: Tls, *, is_public: bool = False) -> AsyncIterator[str]:
    server = new_server()
    node_pb2_grpc.add_NodeServicer_to_server(Asked(tls), server)
    port = bind(server, "127.0.0.1:0", insecure=False, tls=tls, is_public=is_public)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def ask(channel: aio.Channel) -> str:
    async with channel:
        stub = node_pb2_grpc.NodeStub(channel)
        return (await stub.Describe(node_pb2.DescribeRequest(), timeout=3)).node_id


async def refusal(channel: aio.Channel) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as refused:
        await ask(channel)
    return refused.value.code()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open_or_make(tmp_path / "certs", "fleet.test")


async def test_a_control_plane_is_known_by_its_certificate_and_checks_whom_it_reaches(authority: Authority) -> None:
    node, plane = pair(authority, "node", "n1"), pair(authority, "controlplane", "cp")
    async with served(node) as address:
        assert (
            await ask(open_channel(address, plane, name="n1.node.fleet.test")) == "spiffe://fleet.test/controlplane/cp"
        )
        # Another node at that address is not the node that was meant.
        assert await refusal(open_channel(address, plane, name="n2.node.fleet.test")) is grpc.StatusCode.UNAVAILABLE


async def test_whoever_is_no_control_plane_of_this_fleet_is_refused(authority: Authority, tmp_path: Path) -> None:
    node, neighbour = pair(authority, "node", "n1"), pair(authority, "node", "n2")
    other = Authority.open_or_make(tmp_path / "other", "fleet.test")
    stranger = pair(other, "controlplane", "cp")
    async with served(node) as address:
        name = "n1.node.fleet.test"
        assert await refusal(open_channel(address, neighbour, name=name)) is grpc.StatusCode.PERMISSION_DENIED
        trusting = TlsFiles(
            other.folder / "controlplane-cp.crt", other.folder / "controlplane-cp.key", tmp_path / "both"
        )
        write_public(
            tmp_path / "both", (authority.folder / "ca.crt").read_bytes() + (other.folder / "ca.crt").read_bytes()
        )
        # It trusts the node, but the node does not know its authority.
        assert await refusal(open_channel(address, Tls(trusting), name=name)) is grpc.StatusCode.UNAVAILABLE
        assert await refusal(open_channel(address, stranger, name=name)) is grpc.StatusCode.UNAVAILABLE
        assert await refusal(open_channel(address)) is grpc.StatusCode.UNAVAILABLE  # plain text
        anonymous = grpc.ssl_channel_credentials((authority.folder / "ca.crt").read_bytes())
        assert await refusal(aio.secure_channel(address, anonymous)) is grpc.StatusCode.UNAVAILABLE
    # And TLS against plain text.
    server = new_server()
    port = bind(server, "127.0.0.1:0", insecure=False)
    await server.start()
    assert await refusal(open_channel(f"127.0.0.1:{port}", node)) is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


async def test_a_certificate_of_another_domain_or_without_a_name_of_ours_names_nobody(
    authority: Authority, tmp_path: Path
) -> None:
    node = pair(authority, "node", "n1")

    class Elsewhere(Authority):
        domain = "elsewhere.test"

    foreign = Elsewhere(tmp_path / "foreign", authority._certificate, authority._key)
    foreign.folder.mkdir()
    write_public(foreign.folder / "ca.crt", (authority.folder / "ca.crt").read_bytes())
    async with served(node) as address:
        channel = open_channel(address, pair(foreign, "controlplane", "cp"), name="n1.node.fleet.test")
        assert await refusal(channel) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.fault("F26", "P14")
async def test_an_expired_certificate_is_refused_by_its_owner_and_by_its_peers(authority: Authority) -> None:
    with pytest.raises(InvalidRequest, match="expired"):
        pair(authority, "node", "n1", -timedelta(minutes=1))
    node = pair(authority, "node", "n1")
    short = pair(authority, "controlplane", "cp", timedelta(seconds=1.5))
    async with served(node) as address:
        assert await ask(open_channel(address, short, name="n1.node.fleet.test"))
        await asyncio.sleep(2)
        assert await refusal(open_channel(address, short, name="n1.node.fleet.test")) is grpc.StatusCode.UNAVAILABLE


async def test_exchanged_files_count_from_the_next_connection_on_and_running_calls_go_on(
    authority: Authority, tmp_path: Path
) -> None:
    node, plane = pair(authority, "node", "n1"), pair(authority, "controlplane", "cp")
    name = "n1.node.fleet.test"
    async with served(node) as address:
        old = open_channel(address, plane, name=name)
        stub = node_pb2_grpc.NodeStub(old)
        for turn in range(4):
            authority.issue_files("node", "n1", ["127.0.0.1"], DAY)
            authority.issue_files("controlplane", "cp", ["127.0.0.1"], DAY)
            assert (await stub.Describe(node_pb2.DescribeRequest(), timeout=3)).node_id  # the connection that runs
            assert await ask(open_channel(address, plane, name=name))
            assert (plane.version, node.version) == (turn + 1, turn + 1)
        # A new authority, in two steps as it has to be: first everybody trusts both, then new certificates come.
        (tmp_path / "next").mkdir()
        new = Authority.open_or_make(tmp_path / "next", "fleet.test")
        both = (authority.folder / "ca.crt").read_bytes() + (new.folder / "ca.crt").read_bytes()
        write_public(authority.folder / "ca.crt", both)
        for role, peer_id in (("node", "n1"), ("controlplane", "cp")):
            certificate, key = new.issue(role, peer_id, ["127.0.0.1"], DAY)
            write_private(authority.folder / f"{role}-{peer_id}.key", key)
            write_public(authority.folder / f"{role}-{peer_id}.crt", certificate)
            assert await ask(open_channel(address, plane, name=name))
        assert (await stub.Describe(node_pb2.DescribeRequest(), timeout=3)).node_id
        await old.close()


async def test_half_an_exchange_changes_nothing(authority: Authority) -> None:
    node = pair(authority, "node", "n1")
    _, key = authority.issue("node", "n1", [], DAY)
    before = node.version
    write_private(authority.folder / "node-n1.key", key)
    assert node.version == before
    authority.issue_files("node", "n2", [], DAY)
    (authority.folder / "node-n2.crt").replace(authority.folder / "node-n1.crt")
    (authority.folder / "node-n2.key").replace(authority.folder / "node-n1.key")
    assert node.version == before, "it became somebody else while it ran"
    authority.issue_files("node", "n1", [], DAY)
    assert node.version == before + 1


async def test_a_public_port_asks_for_no_certificate_but_shows_one(authority: Authority) -> None:
    node = pair(authority, "node", "n1")
    async with served(node, is_public=True) as address:
        trust = grpc.ssl_channel_credentials((authority.folder / "ca.crt").read_bytes())
        assert await refusal(aio.secure_channel(address, trust)) is grpc.StatusCode.UNAUTHENTICATED  # by the servicer
        assert await refusal(aio.insecure_channel(address)) is grpc.StatusCode.UNAVAILABLE


def test_files_that_make_no_identity_are_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue_files("node", "n1", [], DAY)
    ca = authority.folder / "ca.crt"
    (tmp_path / "text").write_text("hello")
    os.chmod(tmp_path / "text", 0o600)
    other = Authority.open_or_make(tmp_path / "other", "fleet.test")
    other_cert, other_key = other.issue_files("node", "n1", [], DAY)
    for files, says in (
        (TlsFiles(tmp_path / "no.crt", key, ca), "no.crt"),
        (TlsFiles(cert, tmp_path / "text", ca), "PEM"),
        (TlsFiles(cert, other_key, ca), "not the key"),
        (TlsFiles(other_cert, other_key, ca), "not signed"),
        (TlsFiles(ca, authority.folder / "ca.key", ca), "no URI"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            Tls(files)
    os.chmod(key, 0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        Tls(TlsFiles(cert, key, ca))


def test_names_are_parsed_strictly_and_addresses_carry_them() -> None:
    assert parse_uri("spiffe://a.b/node/n1") is not None
    for wrong in (
        "spiffe://a/node/",
        "spiffe://a/admin/x",
        "https://a/node/x",
        "spiffe://a/node/x/y",
        "spiffe:///node/x",
    ):
        assert parse_uri(wrong) is None, wrong
    assert split_address(named_address("n1.node.a", "[::1]:7")) == ("n1.node.a", "[::1]:7")
    assert split_address(named_address("", "10.0.0.1:7")) == ("", "10.0.0.1:7")


def certs(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["certs", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_certs_init_makes_private_keys_and_renews_under_the_same_authority(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    code, said = certs(
        "init", folder, "--node", "n1", "--node", "n2", "--trust-domain", "a.test", "--host", "cp.a", "--json"
    )
    assert code == 0
    named = {report["file"]: report for report in json.loads(said)}
    assert named["node-n2.crt"]["name"] == "spiffe://a.test/node/n2"
    assert {"controlplane.a.test", "cp.a", "127.0.0.1"} <= set(named["controlplane-cp.crt"]["hosts"])
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644), path
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert certs("init", folder, "--node", "n1", "--trust-domain", "a.test", "--days", "1")[0] == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {
        "node-n1.crt", "node-n1.key", "controlplane-cp.crt", "controlplane-cp.key",
    }  # fmt: skip
    assert describe(folder / "node-n1.crt").not_after < datetime.now(UTC) + timedelta(days=2)
    code, said = certs("show", folder)
    assert code == 0 and "spiffe://a.test/node/n1" in said and "days left" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--node", "Not A Name"), "lower-case DNS name"),
        (("--trust-domain", "A B"), "lower-case DNS name"),
        (("--host", "no/host"), "no/host"),
    ],
)
def test_names_that_certificates_cannot_hold_are_refused(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["certs", "init", str(tmp_path / "c"), *arguments])
    assert isinstance(result.exception, InvalidRequest) and says in str(result.exception)


def test_an_authority_of_another_domain_is_not_taken_over(tmp_path: Path) -> None:
    Authority.open_or_make(tmp_path, "a.test")
    with pytest.raises(InvalidRequest, match=r"not 'b\.test'"):
        Authority.open_or_make(tmp_path, "b.test")
    (tmp_path / "ca.key").unlink()
    with pytest.raises(InvalidRequest, match="begin anew"):
        Authority.open_or_make(tmp_path, "a.test")
