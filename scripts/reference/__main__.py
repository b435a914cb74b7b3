"""Write the generated pages of the documentation, docs/reference/*: `make reference`.

tests/docs/test_reference.py makes them again and compares.
"""

from __future__ import annotations

from pathlib import Path

from scripts.reference.pages import DOCS, every_page

if __name__ == "__main__":
    for name, text in every_page().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text)
        print(Path("docs") / name)
