"""A job's request as it is stored, and what tells one request from another. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from controlplane.job_spec import (
    JobKind,
    JobSource,
    JobSpec,
    Matching,
    MediaKey,
    MediaUrl,
    Priority,
    SentVoiceprint,
    Webhook,
)


def encode_spec(spec: JobSpec) -> bytes:
    """JSON of a request."""
    said = asdict(spec)
    said["kind"] = spec.kind.value
    said["priority"] = int(spec.priority)
    said["source"] = {"key": spec.source.key} if isinstance(spec.source, MediaKey) else {"url": spec.source.url}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def decode_spec(encoded: bytes) -> JobSpec:
    """The request again."""
    said: dict[str, Any] = json.loads(encoded)
    source: JobSource = MediaKey(said["source"]["key"]) if "key" in said["source"] else MediaUrl(said["source"]["url"])
    matching = said["matching"] | {"speakers": tuple(said["matching"]["speakers"])}
    return JobSpec(
        **said
        | {
            "kind": JobKind(said["kind"]),
            "priority": Priority(said["priority"]),
            "source": source,
            "voice_ids": tuple(said["voice_ids"]),
            "voiceprints": tuple(SentVoiceprint(**sent) for sent in said["voiceprints"]),
            "matching": Matching(**matching),
            "webhook": None if said["webhook"] is None else Webhook(**said["webhook"]),
        }
    )


def request_digest(spec: JobSpec) -> bytes:
    """Two requests under one idempotency key are the same if this is."""
    return hashlib.sha256(encode_spec(spec)).digest()
