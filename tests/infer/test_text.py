"""The text of tokens as they come is the text of all of them, cut at the first stop string."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loopcoder.errors import InputError
from loopcoder.infer.text import TextStream, TokenBytes
from tests.infer.stand_in import BLANKS, END, MARKER, tokenizer_of

TOKENIZER = tokenizer_of(["der Zähler läuft — die Schleife läuft weiter 🙂 " * 20])
SIZE = TOKENIZER.get_vocab_size()
BYTES_OF = TokenBytes(TOKENIZER)
IN_TEXT = [i for i in range(SIZE) if BYTES_OF[i]]
BYTE_IDS = {BYTES_OF[i][0]: i for i in IN_TEXT if len(BYTES_OF[i]) == 1}
IDS = st.lists(st.integers(0, SIZE + 3), max_size=60)  # also ids that are not in use
ALPHABET = "abä🙂 \n"
TEXTS = st.text(ALPHABET, max_size=40)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


def streamed(ids: list[int], stop: list[str]) -> tuple[list[str], str | None]:
    """Return the pieces of a text, and what stopped it."""
    stream, pieces = TextStream(BYTES_OF, stop), []
    for i in ids:
        pieces.append(stream.add(i))
        if stream.stopped_by is not None:
            return pieces, stream.stopped_by
    pieces.append(stream.end())
    return pieces, stream.stopped_by


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Read a text character by character, and look for a stop string after each."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(deadline=None)
@given(IDS)
def test_pieces_are_the_whole_text(ids: list[int]) -> None:
    """Any tokens, so that most of what they decode to is no UTF-8."""
    pieces, stopped_by = streamed(ids, [])
    known = [i for i in ids if i < SIZE]
    whole = TOKENIZER.decode(known, skip_special_tokens=True)
    assert "".join(pieces) == whole == BYTES_OF.text(ids)
    assert stopped_by is None


@settings(deadline=None)
@given(IDS)
def test_special_tokens_that_are_shown_stand_by_their_names(ids: list[int]) -> None:
    marker, end = TOKENIZER.token_to_id(MARKER), TOKENIZER.token_to_id(END)
    ids = [marker, *ids, end, marker]
    stream = TextStream(BYTES_OF, (), {marker})
    text = "".join(map(stream.add, ids)) + stream.end()
    wanted = [BYTES_OF.named(i) if i == marker else BYTES_OF[i] for i in ids]
    assert text == b"".join(wanted).decode(errors="replace")
    assert text.startswith(MARKER) and text.endswith(MARKER)


@settings(deadline=None, max_examples=200)
@given(TEXTS, STOPS, st.randoms(use_true_random=False))
def test_how_a_text_is_cut_into_tokens_changes_nothing(
    text: str, stop: list[str], rng: random.Random
) -> None:
    """As the tokenizer has it, and at random places, also inside characters."""
    wanted = cut(text, stop)
    for tokens in (TOKENIZER.encode(text).ids, at_random(text.encode(), rng)):
        pieces, stopped_by = streamed(tokens, stop)
        assert ("".join(pieces), stopped_by) == wanted


def at_random(data: bytes, rng: random.Random) -> list[int]:
    """Return tokens of some bytes, each any one that fits."""
    ids: list[int] = []
    while data:
        ids.append(rng.choice([i for i in IN_TEXT if data.startswith(BYTES_OF[i])]))
        data = data[len(BYTES_OF[ids[-1]]) :]
    return ids


@settings(deadline=None)
@given(IDS, STOPS)
def test_any_tokens_are_cut_at_the_first_stop_string(ids: list[int], stop: list[str]) -> None:
    pieces, stopped_by = streamed(ids, stop)
    assert ("".join(pieces), stopped_by) == cut(BYTES_OF.text(ids), stop)


def test_characters_and_stop_strings_are_held_back_only_as_long_as_they_must_be() -> None:
    stream = TextStream(BYTES_OF, ["abc", "bd"])
    said = [stream.add(BYTE_IDS[b]) for b in "ä aabx🙂".encode()]
    assert said == ["", "ä", " ", "", "a", "", "abx", "", "", "", "🙂"]
    assert stream.add(BYTE_IDS[0xC3]) == "" and stream.end() == "�"


def test_special_tokens_are_no_text_and_others_that_were_added_are() -> None:
    ids = [TOKENIZER.token_to_id(t) for t in (MARKER, BLANKS, END)]
    assert BYTES_OF.text(ids) == BLANKS
    assert BYTES_OF.named(ids[0]) == MARKER.encode()


def test_a_tokenizer_of_words_is_refused() -> None:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    with pytest.raises(InputError, match="byte-level"):
        TokenBytes(words)


def test_ids_that_are_not_in_use_are_not_kept(rng: random.Random) -> None:
    bytes_of = TokenBytes(TOKENIZER)
    bytes_of[0]
    kept = len(bytes_of._known)
    for _ in range(100):
        assert bytes_of.named(rng.randrange(2**20, 2**31)) == b""
    assert len(bytes_of._known) == kept
