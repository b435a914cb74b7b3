"""A Redis of our own: found, private, restarted, and dying with us."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from controlplane import embedded_redis
from controlplane.embedded_redis import EmbeddedRedis, find_server
from runtime.errors import Unavailable
from runtime.lifecycle import Tasks
from tests.controlplane.conftest import until

PARENT = """
import asyncio, sys
from pathlib import Path
from controlplane import embedded_redis
from runtime.lifecycle import Tasks
if sys.argv[2] == "launcher":
    embedded_redis.shutil.which = lambda name: None
async def main():
    redis = embedded_redis.EmbeddedRedis(Path(sys.argv[1]))
    await redis.start(Tasks())
    print(redis.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_it_listens_on_a_private_socket_alone(tmp_path: Path) -> None:
    redis, tasks = EmbeddedRedis(tmp_path / "redis"), Tasks()
    await redis.start(tasks)
    try:
        client = Redis.from_url(redis.url)
        assert await client.config_get("port") == {"port": "0"}
        assert await client.config_get("appendonly") == {"appendonly": "yes"}
        await client.aclose()
        folder = Path(redis.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert redis.pid is not None
        assert not psutil.Process(redis.pid).net_connections("tcp")
    finally:
        await redis.stop()
        await tasks.cancel()
    assert redis.pid is None


async def test_a_data_folder_with_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    redis, tasks = EmbeddedRedis(tmp_path / ("long" * 30) / "redis"), Tasks()
    await redis.start(tasks)
    socket_folder = Path(redis.url.removeprefix("unix://")).parent
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    await redis.stop()
    await tasks.cancel()
    assert not socket_folder.exists()


@pytest.mark.parametrize("way", ["setpriv", "launcher"])
async def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path, way: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path / "redis"), way, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert "redis" in psutil.Process(pid).name()
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


async def test_what_a_killed_parent_left_of_its_socket_is_removed_by_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "redis"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(folder), "setpriv", stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    left = Path((folder / "socket").read_text().strip()).parent
    redis, tasks = EmbeddedRedis(folder), Tasks()
    embedded_redis._remove_left_folder(left / "redis.sock")
    assert left.is_dir(), "somebody listens there still"
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert left.is_dir()
    await redis.start(tasks)
    try:
        assert not left.exists()
    finally:
        await redis.stop()
        await tasks.cancel()


async def test_a_killed_one_is_restarted_with_what_it_had(tmp_path: Path) -> None:
    redis, tasks = EmbeddedRedis(tmp_path / "redis"), Tasks()
    await redis.start(tasks)
    client = Redis.from_url(redis.url)
    await client.set("kept", "yes")
    first = redis.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: redis.pid not in (None, first))

    async def answers() -> bool:
        try:
            return await client.get("kept") == b"yes"
        except RedisError:
            return False

    await until(answers)
    await client.aclose()
    await redis.stop()
    await tasks.cancel()


async def test_a_file_that_it_cannot_read_does_not_keep_it_down(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o700)
    (folder / "appendonly.aof").write_bytes(b"not what redis wrote" * 50)
    redis, tasks = EmbeddedRedis(folder), Tasks()
    await redis.start(tasks)
    assert redis.pid is not None
    await redis.stop()
    await tasks.cancel()


def test_a_server_on_the_path_goes_before_the_one_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == own
    own.unlink()
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="REDIS_URL"):
        find_server()
