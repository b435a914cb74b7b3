"""`python -m tests.mutations [WORD …]`: guards whose name or file holds one of the words, all by default."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.mutations.running import Misplaced, copied, guards, noticed


def main(words: list[str]) -> int:
    """Run, tell, and fail if a guard was not missed."""
    chosen = [one for one in guards() if not words or any(word in f"{one.name} {one.file}" for word in words)]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="speakerd-mutations-") as folder:
        tree = copied(Path(folder))
        for guard in chosen:
            began_s = time.monotonic()
            try:
                problem = noticed(tree, guard)
            except Misplaced as error:
                problem = str(error)
            survived += bool(problem)
            said = f"SURVIVED ({problem})" if problem else "noticed"
            print(f"{said:9} {time.monotonic() - began_s:5.1f} s  {guard.name} [{guard.file}]", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
