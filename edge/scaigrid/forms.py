"""The fields of an enrolment's form: what is there, what is missing, all of it told at once.

In: a form. Out: its fields, or InvalidFields with every one that is wrong.
"""

from __future__ import annotations

import json
from typing import Any

from edge.failures import FieldError, InvalidFields
from edge.uploads import Form

LIST_MAX = 50


class Fields:
    """Reads a form's fields, and notes what is wrong; `require_good` raises it."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._wrong: list[FieldError] = []

    def required(self, name: str) -> str:
        """A field that has to say something."""
        value = self._form.fields.get(name, "")
        if not value.strip():
            self.refuse(name, "required")
        return value

    def optional(self, name: str) -> str:
        """A field that may be left out: "" then."""
        return self._form.fields.get(name, "")

    def words(self, name: str) -> tuple[str, ...]:
        """A field with a JSON array of words, which may be left out."""
        said = self.json(name)
        if said is None:
            return ()
        if not isinstance(said, list) or len(said) > LIST_MAX or not all(isinstance(word, str) for word in said):
            self.refuse(name, f"a JSON array of at most {LIST_MAX} strings")
            return ()
        return tuple(said)

    def json(self, name: str) -> Any:
        """A field with JSON; None when it is left out, or wrong."""
        text = self._form.fields.get(name, "")
        if not text.strip():
            return None
        try:
            said = json.loads(text)
            # Half a character can be written in JSON, and nowhere else.
            json.dumps(said, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            self.refuse(name, "not JSON")
            return None
        return said

    def refuse(self, name: str, message: str) -> None:
        """Note that a field is wrong."""
        self._wrong.append(FieldError(name, message))

    def require_good(self) -> None:
        """Raises InvalidFields with all that is wrong."""
        if self._wrong:
            raise InvalidFields(*self._wrong)
