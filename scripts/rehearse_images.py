"""Build and run the images in a clean root, without a Docker engine and without a network.

    python -m scripts.rehearse_images [--target controlplane|cpu|cuda]... [--work FOLDER] [--keep]

In: the checkout, with what deploy/air-gapped/collect.sh has gathered. Out: for each image its size and how long it took
to build, to be healthy, to answer and to end; exit code 0 when all of it went well. Needs root, and buildah, runc and
debootstrap (Debian's packages of those names). An image is removed once it was run, and whatever was written lies in
--work, so that nothing is left of a rehearsal that failed.

What is real: the Dockerfiles, run step by step by a builder (buildah), without a network from the first to the last;
the image's own ENTRYPOINT, CMD, ENV, USER and HEALTHCHECK, run by an OCI runtime (runc) with a read-only root, no
capabilities, no new privileges and no network. An image with an engine is given the conversation that pyannote.audio
brings along, and has to find its two people; the control plane has to list nobody to its first key. What stands in: the
base image. It cannot be had without its registry, so debootstrap makes one of Debian 12 with Debian's own Python 3.11.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BROUGHT = ROOT / "deploy" / "air-gapped" / "brought"
BASE = "localhost/speakerd-rehearsal-base:latest"
TOOLS = ("buildah", "runc", "debootstrap", "unshare")
HEALTHY_S = 300.0
ANSWERED_S = 300.0
ENDED_S = 60.0
# Two people, 30 s; it comes with pyannote.audio.
CONVERSATION = "/opt/speakerd/lib/python3.11/site-packages/pyannote/audio/sample/sample.wav"


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One image: which, and how it is run. arguments: in place of its CMD where this machine has no device. people: how
    many it has to hear in a recording; 0 when it has no engine.
    """

    file: str
    target: str | None
    people: int
    arguments: tuple[str, ...] | None = None
    environment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lived:
    """What a run took: seconds until it was healthy, to answer, and to end."""

    healthy_s: float
    answered_s: float
    ended_s: float


IMAGES = {
    # It listens beyond loopback, in plain text, as behind a proxy; a fleet's control plane is given certificates.
    "controlplane": Rehearsed("Dockerfile", "controlplane", 0, environment=("SPEAKERD_INSECURE=true",)),
    "cpu": Rehearsed("Dockerfile", "cpu", 2),
    "cuda": Rehearsed("Dockerfile.cuda", None, 2, ("up", "--http", "0.0.0.0:7680", "--insecure", "--device", "cpu")),
}


def what_is_missing() -> str:
    """Why nothing can be rehearsed on this machine; "" when it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not on this machine"
    if os.geteuid() != 0:
        return "this is not root"
    return "" if any(BROUGHT.glob("wheels/*.whl")) else "nothing was brought: run deploy/air-gapped/collect.sh first"


class Rehearsal:
    """A store of images in a folder."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._store = ("--root", str(work / "store"), "--runroot", str(work / "run"))
        # The builder writes a layer twice more as it commits it, which is twice PyTorch.
        self._scratch = work / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)

    def make_base(self) -> None:
        """The stand-in of the base image, made once."""
        if self._buildah("images", "--quiet", BASE, check=False).stdout.strip():
            return
        tree = self._work / "base"
        packages = "python3,python3-venv,ca-certificates"
        _call("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(tree))
        # Packages' lists make a base that can install more; the one that this stands in for has none either.
        shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
        container = self._buildah("from", "scratch").stdout.strip()
        self._buildah("add", container, str(tree), "/")
        self._buildah("commit", "--rm", container, BASE)
        shutil.rmtree(tree)

    def build(self, image: Rehearsed) -> str:
        """Build it without a network; its id."""
        target = ("--target", image.target) if image.target else ()
        made = self._buildah(
            "bud", "--isolation", "chroot", "--format", "docker", "--layers=false", "--quiet", "--pull-never",
            "--build-arg", f"PYTHON_IMAGE={BASE}", "--file", str(ROOT / image.file), *target, str(ROOT),
        )  # fmt: skip
        return made.stdout.strip().splitlines()[-1]

    @contextmanager
    def unpacked(self, image_id: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The image's file system, and its configuration."""
        container = self._buildah("from", "--pull-never", image_id).stdout.strip()
        try:
            tree = Path(self._buildah("mount", container).stdout.strip())
            found = json.loads(self._buildah("inspect", "--type", "image", image_id).stdout)
            yield tree, found["Docker"]["config"]
        finally:
            self._buildah("umount", container)
            self._buildah("rm", container)

    def discard(self, image_id: str) -> None:
        """Remove a built image, and the stages that it was made of; the stand-in of the base stays."""
        self._buildah("rmi", "--force", image_id)
        self._buildah("rmi", "--force", "--prune")

    def run(self, image: Rehearsed, tree: Path, config: dict[str, Any]) -> Lived:
        """Run it until its health check is content, ask it something, then stop it."""
        data = self._work / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        os.chown(data, 10001, 10001)
        bundle = self._work / "bundle"
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(runtime_config(image, tree, config, data)))
        name = f"speakerd-rehearsal-{os.getpid()}"
        runc = ("runc", "--root", str(self._work / "runc"))
        began = time.monotonic()
        log = (self._work / "container.log").open("w+")
        process = subprocess.Popen([*runc, "run", "--bundle", str(bundle), name], stdout=log, stderr=log)
        try:
            check = config["Healthcheck"]["Test"]
            assert check[0] == "CMD", f"a health check that is a command, not {check[0]}"
            while True:
                asked = subprocess.run([*runc, "exec", name, *check[1:]], capture_output=True, text=True, check=False)
                if asked.returncode == 0:
                    break
                if process.poll() is not None or time.monotonic() - began > HEALTHY_S:
                    raise SystemExit(f"never healthy: {asked.stdout}{asked.stderr}\n{_tail(self._work)}")
                time.sleep(1.0)
            healthy_s = time.monotonic() - began
            answered_s = _asked(image, data, (*runc, "exec", name))
            began = time.monotonic()
            _call(*runc, "kill", name, config.get("StopSignal", "SIGTERM"))
            code = process.wait(ENDED_S)
            if code != 0:
                raise SystemExit(f"exit code {code} after {config.get('StopSignal')}\n{_tail(self._work)}")
            return Lived(healthy_s, answered_s, time.monotonic() - began)
        finally:
            if process.poll() is None:
                subprocess.run([*runc, "delete", "--force", name], check=False)
                process.send_signal(signal.SIGKILL)
                process.wait()
            log.close()

    def remove(self) -> None:
        """Remove the store, and all else that a rehearsal has written."""
        self._buildah("umount", "--all", check=False)
        self._buildah("rm", "--all", check=False)
        self._buildah("rmi", "--all", "--force", check=False)
        # The driver mounts the store's folder onto itself.
        subprocess.run(["umount", str(self._work / "store" / "overlay")], capture_output=True, check=False)
        shutil.rmtree(self._work)

    def _buildah(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # In a network namespace of its own, which has no interface that is up.
        offline = ("unshare", "--net") if arguments[0] == "bud" else ()
        command = [*offline, "buildah", *self._store, *arguments]
        environment = {**os.environ, "TMPDIR": str(self._scratch)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if check and done.returncode:
            raise SystemExit(f"{' '.join(arguments[:2])} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done


def runtime_config(image: Rehearsed, tree: Path, config: dict[str, Any], data: Path) -> dict[str, Any]:
    """What docker run asks of a runtime for an image's configuration, with --read-only --tmpfs /tmp --cap-drop ALL
    --security-opt no-new-privileges --network none.
    """
    uid, _, gid = config["User"].partition(":")
    private = ["rprivate", "nosuid", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(tree), "readonly": True},
        "hostname": "rehearsal",
        "process": {
            "terminal": False,
            "user": {"uid": int(uid), "gid": int(gid)},
            "cwd": config["WorkingDir"],
            "args": [*config["Entrypoint"], *(config["Cmd"] if image.arguments is None else image.arguments)],
            "env": [*config["Env"], *image.environment],
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=65536k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*private, "size=64m"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
            {"destination": "/data", "type": "bind", "source": str(data), "options": ["rbind", "rw"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }


def size_mb(tree: Path) -> int:
    """What an image's file system holds."""
    return int(_call("du", "-sxm", str(tree)).split()[0])


def rehearse(name: str, work: Path) -> str:
    """Build one image, run it and remove it again; a line of figures. Raises SystemExit, saying what went wrong."""
    rehearsal, image = Rehearsal(work), IMAGES[name]
    rehearsal.make_base()
    began = time.monotonic()
    built = rehearsal.build(image)
    build_s = time.monotonic() - began
    with rehearsal.unpacked(built) as (tree, config):
        mb = size_mb(tree)
        lived = rehearsal.run(image, tree, config)
    rehearsal.discard(built)
    return (
        f"{name}: {mb} MB, built in {build_s:.0f} s, healthy after {lived.healthy_s:.1f} s, "
        f"{f'found {image.people} people' if image.people else 'answered'} in {lived.answered_s:.1f} s, "
        f"ended in {lived.ended_s:.1f} s"
    )


def _asked(image: Rehearsed, data: Path, inside: tuple[str, ...]) -> float:
    """What its users would ask of it, by its own command line with its first key; seconds until it answered right."""
    if image.people:
        server = json.loads((data / "endpoints.json").read_text())["grpc"]
        question: tuple[str, ...] = ("speakerd", "diarize", CONVERSATION, "--server", server, "--json")
    else:
        question = ("speakerd", "voices", "--server", "127.0.0.1:7600", "--json")
    began = time.monotonic()
    told = json.loads(_call(*inside, *question, timeout_s=ANSWERED_S))
    taken_s = time.monotonic() - began
    if image.people:
        heard = {turn["label"] for recording in told["files"] for turn in recording["turns"]}
        if len(heard) != image.people:
            raise SystemExit(f"{len(heard)} people in a conversation of {image.people}")
    elif told["voices"]:
        raise SystemExit("a control plane that is new knows somebody")
    return taken_s


def _call(*command: str, timeout_s: float | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _tail(work: Path) -> str:
    return (work / "container.log").read_text()[-4000:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and run the images in a clean root.")
    parser.add_argument("--target", action="append", choices=list(IMAGES), help="Repeat it; default: all.")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/speakerd-rehearsal"), help="Some 30 GB free.")
    parser.add_argument("--keep", action="store_true", help="Keep the stand-in of the base, for the next time.")
    arguments = parser.parse_args()
    if reason := what_is_missing():
        sys.exit(f"images cannot be rehearsed: {reason}")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        for target in arguments.target or list(IMAGES):
            print(rehearse(target, work), flush=True)
    finally:
        if not arguments.keep:
            Rehearsal(work).remove()


if __name__ == "__main__":
    main()
