"""Text of tokens as they come: whole characters only, and nothing of what stops an answer."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from data_pipeline.tokenizer.spec import byte_of_char
from loopcoder.chat.call_ends import begun_at_end
from loopcoder.errors import InputError


class TokenBytes:
    """What each token of a byte-level BPE adds to a text, in bytes.

    The bytes of a sequence are those of its tokens one after the other, so that a text can be
    decoded as it grows, without decoding it from its beginning again.
    """

    def __init__(self, tokenizer: Any):
        """
        Args:
            tokenizer: A `tokenizers.Tokenizer`.

        Raises:
            InputError: it is no byte-level one.
        """
        if "ByteLevel" not in f"{tokenizer.pre_tokenizer} {tokenizer.decoder}":
            raise InputError.of(
                f"the tokenizer decodes by {tokenizer.decoder}",
                "only in a byte-level BPE does every token stand for fixed bytes",
                "a model with the tokenizer.json of a byte-level BPE",
            )
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._known = {i: b"" for i, token in added.items() if token.special}
        self._byte_of = byte_of_char()

    def __getitem__(self, token: int) -> bytes:
        """Return the bytes of a token; none of a special one, or an id that is not in use."""
        if token in self._known:
            return self._known[token]
        name = self._tokenizer.id_to_token(token)
        if name is None:  # which is not kept: there are any number of such ids
            return b""
        self._known[token] = self._bytes(name)
        return self._known[token]

    def named(self, token: int) -> bytes:
        """Return the bytes of a token, of a special one those of its name."""
        return self[token] or self._bytes(self._tokenizer.id_to_token(token) or "")

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token, by name where it is a special one."""
        return max(len(self.named(i)) for i in self._tokenizer.get_vocab().values())

    def text(self, tokens: Sequence[int]) -> str:
        """Decode a whole sequence; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.__getitem__, tokens)).decode(errors="replace")

    def _bytes(self, name: str) -> bytes:
        try:
            return bytes(self._byte_of[character] for character in name)
        except KeyError:  # an added token, such as a run of blanks, stands in plain text
            return name.encode()


class TextStream:
    """The text of one answer, piece by piece: the pieces together are the text of its tokens, up
    to the first stop string.

    A character waits for its last byte, and what may yet become a stop string for what decides it.
    Of several stop strings the one counts that is complete first, of those that end with the same
    character the longest; so how a text is cut into tokens changes nothing.
    """

    def __init__(
        self,
        bytes_of: TokenBytes,
        stop: Sequence[str] = (),
        shown: Collection[int] = frozenset(),
    ):
        """
        Args:
            stop: Texts of one character at least.
            shown: Special tokens that stand in the text by their names.
        """
        self._bytes_of, self._stop, self._shown = bytes_of, stop, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped_by: str | None = None
        """The stop string, once the text has come to one; nothing is to be added from then on."""

    def add(self, token: int) -> str:
        """Add a token; return what is certain of the text by now, and was not returned before."""
        is_shown = token in self._shown
        new = self._bytes_of.named(token) if is_shown else self._bytes_of[token]
        return self._certain(self._decoder.decode(new))

    def end(self) -> str:
        """Return the rest of the text, in which bytes that lack others are U+FFFD."""
        certain = self._certain(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return certain if self.stopped_by is not None else certain + rest

    def _certain(self, new: str) -> str:
        text = self._held + new
        ends = [(at + len(s), -len(s), s) for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            end, minus_length, self.stopped_by = min(ends)
            self._held = ""
            return text[: end + minus_length]
        held = max((begun_at_end(text, s) for s in self._stop), default=0)
        certain, self._held = text[: len(text) - held], text[len(text) - held :]
        return certain
