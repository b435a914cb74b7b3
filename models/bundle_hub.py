"""Bundles from their publisher's hub, with the user's own token.

In comes the name of a published bundle; out come its files in a folder, and the revision that they are of. The hub is a
seam: what is imported is the same as from a folder on disk. Nothing is sent but requests for these files; the hub
library's telemetry is off. What always holds: an error says what to do about it, and never shows the token.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.bundle import BUNDLES, list_published
from runtime.errors import Denied, InvalidRequest, NotFound, Unauthenticated, Unavailable

DEFAULT_ENDPOINT = "https://huggingface.co"
TOKEN_CHARACTERS_MAX = 512


class Hub(Protocol):
    """A place where repositories of files are published."""

    def fetch(self, repository: str, file: str, revision: str, into: Path) -> str:
        """Put a file of a repository into a folder, under its own path; the commit that it is of.

        Unauthenticated, Denied, NotFound or Unavailable, saying what to do.
        """
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one repository. folder: where they go, "" for the bundle's own folder."""

    repository: str
    revision: str
    folder: str
    files: tuple[str, ...]


def published_parts(name: str) -> list[Part]:
    """Where a published bundle's files are: its own repository first. NotFound for other names."""
    if name not in list_published():
        raise NotFound(f"{name} is not published anywhere that we know of; there are {', '.join(list_published())}")
    source = tomllib.loads((BUNDLES / f"{name}.toml").read_text())["source"]
    return [_part(source), *map(_part, source.get("parts", []))]


def fetch_bundle(hub: Hub, name: str, folder: Path, on_file: Callable[[str], None], revision: str = "") -> str:
    """Fetch a published bundle's files into an empty folder; the commit of its own repository.

    revision: of its own repository, "" for the one that the manifest names.
    """
    commit = ""
    for number, part in enumerate(published_parts(name)):
        into = folder / part.folder
        into.mkdir(parents=True, exist_ok=True)
        wanted = (revision if number == 0 else "") or part.revision
        for file in part.files:
            on_file(f"{part.repository}: {file}")
            found = hub.fetch(part.repository, file, wanted, into)
            if number == 0:
                # All files of a repository are of the commit of the first, also when another comes in between.
                revision = commit = commit or found
    return commit


def _part(source: dict[str, Any]) -> Part:
    return Part(source["repository"], source["revision"], source.get("folder", ""), tuple(source["files"]))


class HuggingFaceHub:
    """huggingface.co, or a mirror that speaks its protocol."""

    def __init__(self, token: str | None, endpoint: str = DEFAULT_ENDPOINT) -> None:
        self._token = token
        self._endpoint = endpoint

    def __repr__(self) -> str:
        return f"HuggingFaceHub({self._endpoint}, {'with' if self._token else 'without'} token)"

    def fetch(self, repository: str, file: str, revision: str, into: Path) -> str:
        """Put a file of a repository into a folder, under its own path; the commit that it is of."""
        # Read as the library is imported, which is here.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        options: dict[str, Any] = {"endpoint": self._endpoint}
        try:
            url = hf_hub_url(repository, file, revision=revision, **options)
            found = get_hf_file_metadata(url, token=self._token or False, **options)
            commit = found.commit_hash or revision
            hf_hub_download(repository, file, revision=commit, local_dir=into, token=self._token or False, **options)
        except Exception as error:  # noqa: BLE001 (each of the library's is handed on as what to do about it)
            raise self._told(error, repository, file) from None
        shutil.rmtree(into / ".cache", ignore_errors=True)
        return commit

    def _told(self, error: Exception, repository: str, file: str) -> Exception:
        """What the library found, as an error that says what to do."""
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        page = f"{self._endpoint}/{repository}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, GatedRepoError) or status == 403:
            if not self._token:
                return self._no_token(page)
            return Denied(
                f"{repository} is given to those who accept its conditions: do so at {page}, with the account that the "
                "token belongs to, then pull again"
            )
        if status == 401 or isinstance(error, RepositoryNotFoundError):
            if not self._token:
                return self._no_token(page)
            return Unauthenticated(
                f"the token does not open {repository}: make one that may read gated repositories, at "
                f"{self._endpoint}/settings/tokens"
            )
        if isinstance(error, RevisionNotFoundError):
            return NotFound(f"{repository} has no such revision: see {page}/commits/main")
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return NotFound(
                f"{repository} has no {file}: it has changed since this manifest was written; import a copy"
            )
        if isinstance(error, HfHubHTTPError) and status is not None:
            return Unavailable(f"the hub answered {status} for {repository}: try again later")
        return Unavailable(
            f"{self._endpoint} cannot be reached from here ({type(error).__name__}): pull on a machine with a network, "
            "and `speakerd models import` the folder here"
        )

    def _no_token(self, page: str) -> Exception:
        return Unauthenticated(
            f"a token is needed: accept the conditions at {page}, make a token at {self._endpoint}/settings/tokens, "
            "and give it in HF_TOKEN or --token-file"
        )


def read_token(file: Path | None) -> str | None:
    """The token of a file, else of HF_TOKEN, else none. InvalidRequest for a file that holds none."""
    if file is None:
        return os.environ.get("HF_TOKEN", "").strip() or None
    try:
        token = file.read_text()[: TOKEN_CHARACTERS_MAX + 1].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: it should hold the token and nothing else") from error
    if not token or len(token) > TOKEN_CHARACTERS_MAX or any(character.isspace() for character in token):
        raise InvalidRequest(f"{file} holds no token: it should hold the token and nothing else")
    return token
