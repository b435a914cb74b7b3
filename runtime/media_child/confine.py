"""Takes from this process what decoding does not need.

`confine` runs before any library that touches the input is loaded, `shut` after the last import and before the first
byte of input is read. What the kernel or the container runtime does not permit is left out silently: each measure
stands on its own, and the limits that always work (rlimits) already suffice to keep the child from opening anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
STANDARD_FDS = 3
NOBODY = 65_534


def confine(parent_pid: int, memory_bytes_max: int, cpu_s_max: float) -> None:
    """Bounds memory and processor time, and dies with the parent."""
    _die_with(parent_pid)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_AS, memory_bytes_max)
    # The soft limit sends SIGXCPU, by which the parent tells this end from others; the hard one, a second later, is for
    # a decoder that has been taken over.
    _limit(resource.RLIMIT_CPU, math.ceil(cpu_s_max), grace=1)
    # NumPy's BLAS would start as many threads as there are cores; one is enough, and a namespace asks for one.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")


def shut(parent_pid: int) -> None:
    """From here on no file, socket, thread or process can be made: fds 0, 1 and 2 are taken, and there is no fourth."""
    if os.geteuid() == 0:
        # Root is exempt from the limit on processes. Now that everything is imported, nobody can go on as well.
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    with contextlib.suppress(OSError, AttributeError):  # AttributeError: a C library without it (macOS).
        ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    # Every change of identity above has cleared the signal of the parent's death.
    _die_with(parent_pid)
    _limit(resource.RLIMIT_NOFILE, STANDARD_FDS)
    _limit(resource.RLIMIT_NPROC, 0)


def _die_with(parent_pid: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    # The parent may have died before prctl took hold.
    if os.getppid() != parent_pid:
        os._exit(1)


def _limit(which: int, value: int, grace: int = 0) -> None:
    hard = resource.getrlimit(which)[1]
    ceiling = value + grace
    if hard != resource.RLIM_INFINITY:
        value, ceiling = min(value, hard), min(ceiling, hard)
    resource.setrlimit(which, (value, ceiling))
