"""The licence header of a file: hundreds of words that small files of a project share."""

from __future__ import annotations

import re

_SIGNS = (b"licen", b"copyright", b"redistribut")
_SEARCHED_BYTES = 4_096
"""Where a header begins, if there is one."""
_MIN_BYTES = 200
"""A line or two, such as those of SPDX, make no files alike."""
_MAX_BYTES = 64_000
_MAX_BLOCKS = 6
"""Comments that stand before the code: a modeline, a name, the licence, what the file is for."""
_BLANK = re.compile(
    rb"\s*+(?:[\"']use strict[\"'];\s*|<\?(?:php|xml[^>\n]*\?>)\s*|#![^\n]*\n\s*)?+"
)
# a block comment, or lines that begin with the same sign; possessive: linear in any input
_CODE_COMMENT = re.compile(
    rb"/\*(?s:.*?)\*/|<!--(?s:.*?)-->|<#(?s:.*?)#>|\(\*(?s:.*?)\*\)|\{-(?s:.*?)-\}"
    rb"|--\[(=*)\[(?s:.*?)\]\1\]|\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''"
    rb"|(?:[ \t]*+//[^\n]*+\n?)++|(?:[ \t]*+#(?![a-z\[])[^\n]*+\n?)++|(?:[ \t]*+--[^\n]*+\n?)++"
    rb"|(?:[ \t]*+;[^\n]*+\n?)++|(?:[ \t]*+%[^\n]*+\n?)++|(?:[ \t]*+![^\n]*+\n?)++"
    rb"|(?:[ \t]*+'[^\n]*+\n?)++|(?i:(?:[ \t]*+(?:rem|dnl)\b[^\n]*+\n?)++)"
)
_PROSE_COMMENT = re.compile(
    rb"<!--(?s:.*?)-->|(?:[ \t]*+%[^\n]*+\n?)++|(?:['.]\\\"[^\n]*+\n?)++"
    rb"|\.\.(?:[ \t]+[^\n:]*)?\n(?:[ \t]+[^\n]*+\n|[ \t]*+\n(?=[ \t]))++"
)


def without_licence(data: bytes, *, code: bool) -> bytes:
    """Return a file without the comments at its start that state a licence.

    Comments for something else stay. A file that is nothing but a licence stays as it is.

    Args:
        data: UTF-8 of the file.
        code: Whether it is a program; in prose only the comments of TeX, roff, Markdown and
            reStructuredText count.
    """
    if not _states_licence(data[:_SEARCHED_BYTES]):
        return data
    comment = _CODE_COMMENT if code else _PROSE_COMMENT
    kept: list[bytes] = []
    at = 0
    for _ in range(_MAX_BLOCKS):
        start = at
        if blank := _BLANK.match(data, at, _MAX_BYTES):
            at = blank.end()
        block = comment.match(data, at, _MAX_BYTES)
        if not block or not block[0]:
            at = start
            break
        at = block.end()
        if len(block[0]) < _MIN_BYTES or not _states_licence(block[0]):
            kept.append(data[start:at])
    rest = data[at:]
    body = b"".join((*kept, rest))
    return body if len(body) < len(data) and rest.strip() else data


def _states_licence(data: bytes) -> bool:
    head = data.lower()
    return any(sign in head for sign in _SIGNS)
