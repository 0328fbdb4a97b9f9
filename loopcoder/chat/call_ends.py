"""Where the text of a call ends, found while it comes, in a time that goes with its length.

A `</tool_call>` may stand within a value, where it ends nothing. So quotes, or the tags of
parameters, are followed through the text once; only what may be whole is read as a call. Of calls
in JSON that begin within others at most two are alive at a time: outside of a string each is at its
end with the next tag or backslash, and the quotes between take one in where they let the other out.
"""

from __future__ import annotations

import re

from loopcoder.chat.call_formats import BEGINNINGS, CLOSE, CallFormat

_SOLID = re.compile(r"\S")
_OUTSIDE = re.compile(r'["<\\]')
"""In JSON, outside of a string; the last two stand in none."""
_IN_STRING = re.compile(rf'"|\\.|{CLOSE}', re.DOTALL)
_VALUE, _VALUE_END = "<parameter=", "</parameter>"
_TAGS = re.compile(f"{_VALUE}|{_VALUE_END}|{CLOSE}")


class CallEnd:
    """Follows one text from behind `<tool_call>` on."""

    def __init__(self, format: CallFormat, start: int):
        """
        Args:
            start: Place in the text behind `<tool_call>`.
        """
        self.skipped: int | None = None
        """The last `</tool_call>` within a value that was not returned."""
        self._start, self._at = start, start
        self._is_json, self._in_value = format == "hermes", False
        self._checked = 0
        """Characters of the call up to what was last returned."""

    def next(self, text: str) -> int | None:
        """Return the next place up to which the text may be a whole call, or none however it goes
        on; None: there is none yet.

        Of the ends within values some are returned, each twice as far as the one before, so that
        what is no call is told soon, and not read again with each of them.

        Args:
            text: The same as before, and more.
        """
        while True:
            found = self._tag(text)
            if found is None:
                return None
            tag, place = found
            if tag == CLOSE and self._in_value:
                self.skipped = place
                if place - self._start < 2 * self._checked:
                    continue
            elif tag == '"':
                self._in_value = not self._in_value
                continue
            elif tag in (_VALUE, _VALUE_END):
                self._in_value = tag == _VALUE
                continue
            elif tag[0] == "\\" and self._in_value:
                continue
            self.skipped, self._checked = None, place - self._start
            return place if tag == CLOSE else place + 1

    def _tag(self, text: str) -> tuple[str, int] | None:
        """Return what is next of all that matters here, with its place, and go behind it."""
        of_json = _IN_STRING if self._in_value else _OUTSIDE
        found = (of_json if self._is_json else _TAGS).search(text, self._at)
        if found is None:
            self._at = _unfinished(text, self._at)
            return None
        tag, place = found[0], found.start()
        if tag == "<":
            rest = text[place : place + len(CLOSE)]
            if rest != CLOSE and CLOSE.startswith(rest):
                self._at = place
                return None
            tag = rest if rest == CLOSE else "<"
        self._at = place + len(tag)
        return tag, place


def beginning(text: str, at: int, format: CallFormat) -> tuple[bool | None, int]:
    """Say whether a text begins as calls do, behind blanks; None: it is too short to tell.

    Returns:
        that, and from where on to look the next time.
    """
    wanted = BEGINNINGS[format]
    solid = _SOLID.search(text, at)
    if solid is None:
        return None, len(text)
    begun = text[solid.start() : solid.start() + len(wanted)]
    if begun != wanted and wanted.startswith(begun):
        return None, solid.start()
    return begun == wanted, solid.start()


def begun_at_end(text: str, tag: str) -> int:
    """Return how many characters at the end of a text are the beginning of a tag, not the whole of
    it."""
    most = min(len(text), len(tag) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(tag[:n])), 0)


def _unfinished(text: str, at: int) -> int:
    """Return where, behind `at`, a text breaks off within a tag or behind a backslash; its end if
    it does not."""
    last = text.rfind("<", max(at, len(text) - len(CLOSE)))
    if last >= 0 and any(tag.startswith(text[last:]) for tag in (CLOSE, _VALUE, _VALUE_END)):
        return last
    return len(text) - text.endswith("\\", at)
