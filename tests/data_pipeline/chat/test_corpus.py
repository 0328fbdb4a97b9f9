"""prepare() on conversations: what is in the sequences, and what is said of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from data_pipeline.chat import packed
from data_pipeline.chat.tokens import prepared, tokenise
from data_pipeline.driver import prepare
from data_pipeline.shuffle.validate import validate_corpus
from data_pipeline.tasks.dropped import lists_of, read_list
from loopcoder.chat.conversation import Conversation
from loopcoder.chat.parsing import parse
from loopcoder.chat.render import Renderer
from loopcoder.chat.templates import FILE, built_in
from loopcoder.chat.unusable import Unusable
from loopcoder.config.chat import ChatConfig
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import lengths_of
from loopcoder.data.places import CHAT_TEMPLATE, HELD_OUT
from loopcoder.errors import InputError
from tests.chat import chats
from tests.data_pipeline.chat.conftest import SEQ_LENGTH, MakeConfig, rows, write

Documents = list[tuple[list[int], list[bool]]]


def read(corpus: Corpus, split: str) -> tuple[Documents, list[int]]:
    """Return ids and mask of every document of a split, and how long they are."""
    found, sizes = [], []
    for number, prefix in enumerate(corpus.prefixes("chat", split)):
        path = Path(prefix)
        documents = corpus.manifest["domains"]["chat"][split]["shards"][number]["documents"]
        lengths = np.concatenate(list(lengths_of(path, documents)))
        ids = np.fromfile(f"{path}.bin", dtype=np.uint16)
        mask = np.fromfile(f"{path}.mask", dtype=np.uint8)
        assert len(mask) == len(ids) == lengths.sum()
        ends = np.cumsum(lengths)
        assert np.isin(np.arange(1, len(ids) // SEQ_LENGTH + 1) * SEQ_LENGTH, ends).all()
        for start, end in zip(ends - lengths, ends, strict=True):
            found.append((ids[start:end].tolist(), mask[start:end].astype(bool).tolist()))
            sizes.append(int(end - start))
        assert found.pop() == ([corpus.eod_id], [False]), "the shard does not end in its EOD"
        sizes.pop()
    return found, sizes


def stripped(documents: Documents, corpus: Corpus) -> Counter[tuple[object, ...]]:
    """Return documents without what fills sequences up, which none of our texts end in."""
    filler = chats.tokenizer().encode("\n").ids[0]
    found: Counter[tuple[object, ...]] = Counter()
    for ids, mask in documents:
        assert ids[-1] == corpus.eod_id
        assert not mask[-1]
        end = len(ids) - 1
        while ids[end - 1] == filler and not mask[end - 1]:
            end -= 1
        found[(*ids[:end], *mask[:end])] += 1
    return found


def expected(conversations: list[Conversation], chat: ChatConfig) -> Documents:
    """Return what conversations are, one by one."""
    renderer = Renderer.of(built_in("qwen3"), chats.tokenizer(), {})
    found = []
    for conversation in conversations:
        try:
            said = prepared(conversation, chat)
            ids, mask = tokenise(renderer, chats.tokenizer(), said, chat)
        except Unusable:
            continue
        if len(ids) < SEQ_LENGTH:
            eod = chats.tokenizer().token_to_id("<|endoftext|>")
            found.append(([*ids.tolist(), eod], [*mask.tolist(), False]))
    return found


def test_every_conversation_is_in_one_sequence(
    config: MakeConfig, tmp_path: Path, rng: random.Random
) -> None:
    given = rows(rng, 120)
    write(tmp_path / "chats/a.jsonl", given[:70])
    write(tmp_path / "chats/b.jsonl", [*given[70:], given[0]])
    lines: list[str] = []
    chat = ChatConfig(turns=rng.choice(("all", "first", "last")), system="Be brief.")
    corpus = prepare(config(chat=chat, part_bytes=30_000), report=lines.append)
    train, sizes = read(corpus, "train")
    val, _ = read(corpus, "val")
    wanted = stripped(expected([parse(row) for row in given], chat), corpus)
    assert stripped(train, corpus) + stripped(val, corpus) == wanted
    assert max(wanted.values()) == 1
    lines_held = (corpus.dir / HELD_OUT).read_text(encoding="utf-8").split("\n")
    held = [parse(json.loads(line)) for line in lines_held if line]
    assert stripped(expected(held, chat), corpus) == stripped(val, corpus)
    assert (corpus.dir / CHAT_TEMPLATE).read_text() == built_in("qwen3")
    assert corpus.chat_template == built_in("qwen3")
    assert validate_corpus(corpus.dir) == []
    packing, about = corpus.manifest["packed"], corpus.manifest["chat"]
    assert packing["seq_length"] == SEQ_LENGTH
    assert packing["sequences"] * SEQ_LENGTH == sum(sizes)
    assert packing["trained_tokens"] == sum(sum(mask) for _, mask in train)
    assert about["train"]["conversations"] == len(train)
    tokens = about["train"]["tokens"]
    assert packing["padding"] == 1 - tokens / sum(sizes)
    assert sum(row["conversations"] for row in about["kinds"]) == len(train) + len(val)
    assert {row["licence"] for row in about["kinds"]} == {"MIT", "CC0-1.0"}
    assert {label.source for label in corpus.labels} == {"0-chat/faq", "0-chat/docs"}
    assert any("% of them padding" in line for line in lines)


def test_what_is_left_out_is_counted_and_named(
    config: MakeConfig, tmp_path: Path, rng: random.Random
) -> None:
    good = rows(rng, 30)
    bad = [
        ({"messages": [{"content": "a"}]}, "missing_role"),
        ({"text": "a"}, "no_messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no_assistant_turn"),
        ([1], "not_an_object"),
        ({"prompt": "Say <|im_end|>", "completion": "No"}, "special_token_in_text"),
        ({"prompt": "Why?", "completion": "Because. " * SEQ_LENGTH}, "too_long"),
    ]
    write(tmp_path / "chats/a.jsonl", [row for row, _ in bad] + good)
    (tmp_path / "chats/notes.txt").write_text("This is none of them.")
    lines: list[str] = []
    corpus = prepare(config(), report=lines.append)
    found = {
        entry["row"]: entry["reason"]
        for path in lists_of(corpus.dir)
        for entry in read_list(path)
        if "row" in entry
    }
    assert {row: reason for row, reason in found.items() if row < len(bad)} == {
        number: reason for number, (_, reason) in enumerate(bad)
    }
    reasons = {row["reason"]: row["number"] for row in corpus.manifest["dropped"]["reasons"]}
    assert reasons.keys() >= {reason for _, reason in bad}
    assert reasons["unknown_type"] == 1
    (told,) = [line for line in lines if "left out of 32 conversations: " in line]
    named = told.partition("conversations: ")[2].split(", ")
    assert any(one.startswith("1 special_token_in_text (<|im_end|>)") for one in named)
    at_reading = [line for line in lines if "rows of source 0-chat: " in line]
    assert [line.count(reason) for line in at_reading for _, reason in bad[:4]] == [1] * 4
    # of the good ones, which are drawn, some may be too long
    assert {"special_token_in_text", "too_long"} <= {one.split()[1] for one in named}


def test_too_long_is_cut_where_the_assistant_has_answered(
    config: MakeConfig, tmp_path: Path
) -> None:
    turn = [
        {"role": "user", "content": "How long is it?"},
        {"role": "assistant", "content": "So long. " * 30},
    ]
    long = {"messages": turn * 12}
    write(tmp_path / "chats/a.jsonl", [long, {"prompt": "a", "completion": "b"}])
    fields = {"val_fraction": 0, "chat": ChatConfig(too_long="cut")}
    lines: list[str] = []
    corpus = prepare(config(**fields), report=lines.append)
    documents = [*read(corpus, "train")[0], *read(corpus, "val")[0]]
    ids, _ = max(documents, key=lambda document: sum(document[1]))
    text = chats.tokenizer().decode(ids, skip_special_tokens=False)
    answers = text.count("So long. " * 30 + "<|im_end|>")
    assert 0 < answers < 12
    assert text.count("So long") == 30 * answers == 30 * text.count("How long is it?")
    whole = len(chats.tokenizer().encode(text.partition("<|im_end|>\n<|im_start|>user")[0]).ids)
    assert len(ids) <= SEQ_LENGTH < len(ids) + 2 * whole or len(ids) == SEQ_LENGTH
    (notes,) = [s["notes"] for s in corpus.manifest["stages"] if s["stage"] == "render"]
    assert notes["cut_at_a_turn"] == 1
    with pytest.raises(InputError, match="1 too_long") as refused:
        prepare(config(**fields | {"chat": ChatConfig()}), report=lambda _: None)
    assert "data.build.chat.too_long=cut" in str(refused.value)


def test_too_many_that_cannot_be_rendered_stop_a_build(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that a template has written already, as some data sets have them."""
    monkeypatch.setattr(packed, "MIN_ROWS", 10)
    written = "<|im_start|>user\nWhy?<|im_end|>"
    questions = [written if i % 3 == 0 else "Why?" for i in range(30)]
    given = [{"prompt": f"{q} {i}", "completion": "So."} for i, q in enumerate(questions)]
    write(tmp_path / "chats/a.jsonl", given)
    with pytest.raises(InputError, match="10 of 30 conversations cannot be rendered") as refused:
        prepare(config(), report=lambda _: None)
    assert "special_tokens=keep" in str(refused.value)


def test_system_prompts_that_explain_calls(
    config: MakeConfig, tmp_path: Path, tokenizer_folder: Path
) -> None:
    """Those of Hermes, by a tokenizer whose `<tool_call>` is a token: it is said what takes them,
    also where other conversations make up a corpus."""
    made = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    folder = tmp_path / "with_tags"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / FILE).write_text(built_in("hermes"))
    system = {"role": "system", "content": "Answer within <tool_call></tool_call>."}

    def row(number: int, *before: dict[str, str]) -> dict[str, Any]:
        asked = {"role": "user", "content": f"Why {number}?"}
        return {"messages": [*before, asked, {"role": "assistant", "content": "So."}]}

    explained = [row(i, system) for i in range(5)]
    write(tmp_path / "chats/a.jsonl", explained)
    with pytest.raises(InputError, match=r"5 special_token_in_text \(<tool_call>\)") as refused:
        prepare(config(tokenizer=str(folder)), report=lambda _: None)
    assert "data.build.chat.special_tokens=keep" in str(refused.value)

    write(tmp_path / "chats/a.jsonl", [*explained, *(row(i) for i in range(5, 10))])
    lines: list[str] = []
    prepare(config(tokenizer=str(folder)), report=lines.append)
    (told,) = [line for line in lines if "left out of 10 conversations: " in line]
    assert told.endswith(": 5 special_token_in_text (<tool_call>)")
    (advice,) = [line for line in lines if "what helps against special_token_in_text" in line]
    assert "data.build.chat.special_tokens=keep" in advice

    kept = ChatConfig(special_tokens="keep")
    corpus = prepare(config(tokenizer=str(folder), chat=kept), report=lambda _: None)
    about = corpus.manifest["chat"]
    assert about["train"]["conversations"] + about["val"]["conversations"] == 10


def test_the_commonest_reason_says_what_to_do(config: MakeConfig, tmp_path: Path) -> None:
    """ChatML has no place for reasoning, and too few rows are there to speak of a share."""
    turn = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    rows = [{"messages": [{"role": "user", "content": f"Why {i}?"}, turn]} for i in range(5)]
    write(tmp_path / "chats/a.jsonl", rows)
    with pytest.raises(InputError, match="0 conversations can be trained on") as refused:
        prepare(config(chat=ChatConfig(template="chatml")), report=lambda _: None)
    assert "data.build.chat.template=qwen3" in str(refused.value)
