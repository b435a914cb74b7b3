"""Where a recording of a form is: in the form, or on a drive."""

from __future__ import annotations

from controlplane.intake import Clip
from controlplane.media_sources import KINDS, DriveReference
from edge.scaigrid.forms import Fields
from edge.uploads import Form
from runtime.errors import InvalidRequest


class AmbiguousSource(InvalidRequest):
    """One recording was sent in two ways."""


def clip_of(form: Form, fields: Fields, name: str) -> Clip | None:
    """The recording of that name; None when it is missing or wrong, which is noted. Raises AmbiguousSource."""
    drive = f"{name}_scaidrive_json"
    reference = fields.json(drive)
    if name in form.files and form.fields.get(drive, "").strip():
        raise AmbiguousSource(f"{name}: send the file or {drive}, not both")
    if name in form.files:
        return Clip(form.files[name].data)
    if not form.fields.get(drive, "").strip():
        fields.refuse(name, f"required: send the file, or {drive}")
        return None
    said = _said(reference)
    if said is None:
        fields.refuse(drive, f"a JSON object with one of {', '.join(KINDS)}, a string")
        return None
    return Clip(b"", drive=said)


def _said(reference: object) -> DriveReference | None:
    if not isinstance(reference, dict):
        return None
    given = {kind: value for kind, value in reference.items() if value is not None}
    if len(given) != 1:
        return None
    ((kind, value),) = given.items()
    if kind not in KINDS or not isinstance(value, str) or not value:
        return None
    return DriveReference(kind, value)
