"""Print what some extras of a pyproject.toml require, one requirement a line, without what names the project itself.

    python3 requirements.py PYPROJECT EXTRAS

pip can install a project's requirements with the project only; images want them in a layer of their own.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirements of the project and of those extras, each once, in the order of the file.

    Raises KeyError for an extra that there is not.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    own = re.compile(rf"{re.escape(project['name'])}\[(?P<extras>[^\]]+)\]")
    wanted, found = list(extras), dict.fromkeys(project["dependencies"])
    seen: set[str] = set()
    while wanted:
        extra = wanted.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            if inner := own.fullmatch(requirement):
                wanted += [name.strip() for name in inner["extras"].split(",")]
            else:
                found.setdefault(requirement)
    return list(found)


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]), sys.argv[2].split(","))) + "\n")
