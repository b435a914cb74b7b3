"""`python -m speakerd`."""

from __future__ import annotations

from speakerd.cli import main

if __name__ == "__main__":
    main()
