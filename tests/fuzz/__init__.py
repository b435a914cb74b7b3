"""Fuzzing of whatever reads bytes from outside: `python -m tests.fuzz TARGET --seconds N`, `--list` names targets.

A target takes bytes, and fails when it raises anything but what its callers expect, or when what it gives is not what
it promises. Seeds are made from real requests, files and frames (`Target.seeds`), never checked in; inputs that once
failed are, under found/TARGET, and are replayed with the seeds and some mutations of them in `make test`.
"""
