"""`speakerd up`: control plane and node in one command, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from speakerd.cli.connection import DataOption, data_folder
from speakerd.cli.fleet import Fleet, FleetPlan
from speakerd.cli.output import JsonFlag, Output
from speakerd.errors import SpeakerdError

ResultT = TypeVar("ResultT")


def up(
    *,
    data: DataOption = None,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve HTTP here; port 0: a free one.")
    ] = "127.0.0.1:0",
    grpc: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve gRPC here; port 0: a free one.")
    ] = "127.0.0.1:0",
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many nodes to run.")] = 1,
    bundle: Annotated[str | None, typer.Option(help="Bundle of weights. Default: builtin.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="File of `speakerd calibrate`, for this bundle.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or null. Default: cpu.")] = None,
    streams_max: Annotated[int | None, typer.Option(min=1, help="Streams a node carries at most.")] = None,
    drain_s: Annotated[float, typer.Option(min=0.0, help="How long streams may go on when stopping.")] = 10.0,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow addresses that are not loopback.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Daemon logs to stderr, not to DATA/logs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run everything on this machine: control plane, node, Redis and SQLite in one data folder.

    Prints one line when ready: `ready http=http://HOST:PORT grpc=HOST:PORT`. The first administrator's key is then in
    DATA/admin.key, and the other commands find the server by themselves. Ends on SIGTERM and Ctrl-C, after draining.
    """
    plan = FleetPlan(
        data=data_folder(data).resolve(),
        http=http,
        grpc=grpc,
        nodes=nodes,
        bundle=bundle,
        calibration=None if calibration is None else calibration.resolve(),
        device=device,
        streams_max=streams_max,
        drain_s=drain_s,
        insecure=insecure,
        verbose=verbose,
    )
    asyncio.run(_up(plan, Output(as_json=as_json)))


async def _up(plan: FleetPlan, out: Output) -> None:
    stopping = asyncio.Event()
    with stop_signals(stopping) as hurry:
        fleet = Fleet(plan, say=out.note)
        if not await _entered(fleet, stopping):
            return
        try:
            endpoints = fleet.endpoints
            out.say(f"ready http={endpoints.http} grpc={endpoints.grpc}")
            out.result({"ready": True, "http": endpoints.http, "grpc": endpoints.grpc, "data": str(plan.data)})
            failed = asyncio.ensure_future(fleet.failed())
            stopped = asyncio.ensure_future(stopping.wait())
            await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not failed.done():
                failed.cancel()
                out.note("stopping: streams may go on for as long as they need, up to the drain time")
        finally:
            hurried = asyncio.create_task(_hurry(fleet, hurry))
            await fleet.__aexit__(None, None, None)
            hurried.cancel()
        if failed.done() and not failed.cancelled():
            raise SpeakerdError("unavailable", f"{failed.result()}: see {plan.data / 'logs'}")


async def _entered(fleet: Fleet, stopping: asyncio.Event) -> bool:
    """Bring the fleet up, unless a signal comes first."""
    entering = asyncio.ensure_future(fleet.__aenter__())
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({entering, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not entering.done():
        entering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entering
        return False
    await entering
    return True


async def _hurry(fleet: Fleet, hurry: asyncio.Event) -> None:
    await hurry.wait()
    fleet.hurry()


@contextlib.contextmanager
def stop_signals(stopping: asyncio.Event) -> Iterator[asyncio.Event]:
    """Set `stopping` on the first SIGTERM or SIGINT, and the event that is yielded on the next one."""
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()

    def on_signal() -> None:
        (hurry if stopping.is_set() else stopping).set()

    numbers = (signal.SIGTERM, signal.SIGINT, *_hang_up())
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield hurry
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def run_until_signal(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a command's work; SIGTERM and SIGHUP cancel it as Ctrl-C does, so that what it started is torn down."""

    async def cancellable() -> ResultT:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, *_hang_up()):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _hang_up() -> tuple[signal.Signals, ...]:
    """A terminal that is closed ends us in order too, unless we were started to outlive it (nohup)."""
    return (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else ()
