"""`python -m tests.fuzz TARGET --seconds N`: fuzz a target with atheris for so many seconds of processor time.

Exits with 1 when it fails, and leaves the input under tests/fuzz/found/TARGET. Without atheris (it has wheels for few
Pythons) the same seeds are mutated without looking at what the code does with them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.target import FOUND, INPUT_BYTES_MAX, One

PACKAGES = ("node", "runtime", "controlplane", "edge", "models", "speakerd")
ONE_S_MAX = 60


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time")
    parser.add_argument("--corpus", type=Path, help="a folder in which inputs that reach new code are kept")
    parser.add_argument("--plain", action="store_true", help="mutate without instrumentation")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    said = parser.parse_intermixed_args()
    if said.list or not said.target:
        from tests.fuzz.corpus import TARGETS

        print("\n".join(TARGETS))
        return 0
    if said.child:
        return _instrumented(said.target, said.corpus, said.seconds)
    if said.plain or importlib.util.find_spec("atheris") is None:
        return _uninstrumented(said.target, said.seconds)
    if said.corpus is not None:
        return _fuzzed(said.target, said.corpus, said.seconds)
    with tempfile.TemporaryDirectory(prefix="speakerd-corpus-") as folder:
        return _fuzzed(said.target, Path(folder), said.seconds)


def _fuzzed(name: str, folder: Path, seconds: float) -> int:
    """In a process of its own, which libFuzzer ends."""
    found = FOUND / name
    before = set(found.glob("*"))
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.fuzz", name, "--child"]
    command += ["--corpus", str(folder), "--seconds", str(seconds)]
    with subprocess.Popen(command, start_new_session=True) as child:
        status = child.wait()
        with contextlib.suppress(ProcessLookupError):
            # What it started (Redis, decoders) has lost its parent.
            os.killpg(child.pid, signal.SIGKILL)
    print(f"{name}: {_children_s():.0f} s used for {seconds:.0f} s of fuzzing, status {status}", flush=True)
    if status != 0:
        print("\n".join(f"found: {path}" for path in sorted(set(found.glob("*")) - before)))
    return 1 if status != 0 else 0


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _instrumented(name: str, folder: Path, seconds: float) -> int:
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        from tests.fuzz.corpus import TARGETS, write

    target = TARGETS[name]
    write(target, folder)
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    with target.opened() as one:
        options = [
            f"-artifact_prefix={FOUND / name}/", "-rss_limit_mb=4096", f"-timeout={ONE_S_MAX}",
            f"-max_len={INPUT_BYTES_MAX}", "-print_final_stats=1", "-verbosity=1",
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, str(folder)], _until(seconds, one))
        atheris.Fuzz()
    return 0


def _until(seconds: float, one: One) -> One:
    """Until so much processor time is used libFuzzer goes on: by its own clock a busy machine would hardly begin."""
    end_s = time.process_time() + _children_s() + seconds

    def counted(data: bytes) -> None:
        one(data)
        if time.process_time() + _children_s() >= end_s:
            os.kill(os.getpid(), signal.SIGUSR1)  # which libFuzzer takes as a wish to end well

    return counted


def _uninstrumented(name: str, seconds: float) -> int:
    from tests.fuzz.corpus import TARGETS, corpus
    from tests.fuzz.target import mutations

    target = TARGETS[name]
    seeds, tried, seed = corpus(target), 0, time.time_ns()
    print(f"{name}: seed {seed}")
    began_s = time.process_time() + _children_s()
    with target.opened() as one:
        while (used_s := time.process_time() + _children_s() - began_s) < seconds:
            seed += 1
            for data in mutations(seeds, 200, seed):
                tried += 1
                try:
                    one(data)
                except Exception:
                    traceback.print_exc()
                    path = FOUND / name / hashlib.sha256(data).hexdigest()[:16]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    print(f"found: {path}")
                    return 1
    print(f"{name}: {tried} inputs in {used_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
