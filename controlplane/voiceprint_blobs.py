"""Voiceprints as callers keep them: base64 of a sealed blob, which tells nothing and opens for its tenant alone.

In: a voiceprint. Out: text of at most VOICEPRINT_CHARS_MAX characters, and the voiceprint again. What always holds: a
blob that was changed, is another tenant's, or was never ours is refused with the same words.
"""

from __future__ import annotations

import base64
import struct

from controlplane.holdings import Print
from controlplane.job_spec import VOICEPRINT_CHARS_MAX
from controlplane.tenant_seals import VOICEPRINTS, Foreign, TenantSeals
from runtime.errors import InvalidRequest

VERSION = 1
_BODY = struct.Struct(">IH")  # net speech in milliseconds, bytes of the model's name
NOT_OURS = "is none that this service gave to this tenant: send what a voiceprint job returned, unchanged"


def seal_print(seals: TenantSeals, voiceprint: Print) -> str:
    """The blob as base64."""
    model = voiceprint.model.encode()
    body = _BODY.pack(voiceprint.net_speech_ms, len(model)) + model + voiceprint.embedding
    text = base64.b64encode(bytes((VERSION,)) + seals.seal(VOICEPRINTS, body, str(VERSION))).decode()
    assert len(text) <= VOICEPRINT_CHARS_MAX, "an embedding of more dimensions than any model has"
    return text


def open_print(seals: TenantSeals, blob: str, *, field: str) -> Print:
    """The voiceprint again. Raises InvalidRequest, naming the field."""
    refused = InvalidRequest(f"{field}: {NOT_OURS}")
    try:
        sealed = base64.b64decode(blob, validate=True)
        if sealed[:1] != bytes((VERSION,)):
            raise refused
        body = seals.open(VOICEPRINTS, sealed[1:], str(VERSION))
    except (ValueError, Foreign):
        raise refused from None
    net_speech_ms, model_bytes = _BODY.unpack_from(body)
    end = _BODY.size + model_bytes
    return Print(body[_BODY.size : end].decode(), body[end:], net_speech_ms)
