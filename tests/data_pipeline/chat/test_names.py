"""What a corpus of conversations is called, and what it cannot be built with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_pipeline.chat.template import check_template
from data_pipeline.driver import prepare
from data_pipeline.readers import open_source
from data_pipeline.resolve import fingerprint_of, refuse_unusable
from loopcoder.chat.templates import FILE, built_in
from loopcoder.config.build import FimConfig, RepositoryConfig, SourceConfig
from loopcoder.config.chat import ChatConfig
from loopcoder.config.check_build import check_build
from loopcoder.config.data import DataConfig
from loopcoder.config.filters import FilterConfig
from loopcoder.errors import InputError
from tests.configs import data_config
from tests.data_pipeline.chat.conftest import SEQ_LENGTH, MakeConfig, write

CHATS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def name(data: DataConfig) -> str:
    return fingerprint_of(data, [open_source(data.build.sources[0], 0)], {"chat": 1})


def test_a_corpus_is_named_by_all_that_it_is_made_of(config: MakeConfig, tmp_path: Path) -> None:
    write(tmp_path / "chats/a.jsonl", CHATS)
    names = [
        name(config(**fields))
        for fields in (
            {},
            {"chat": ChatConfig(turns="last")},
            {"chat": ChatConfig(reasoning="drop")},
            {"chat": ChatConfig(too_long="cut")},
            {"chat": ChatConfig(system="Be brief.")},
            {"chat": ChatConfig(special_tokens="keep")},
            {"chat": ChatConfig(template="hermes")},
            {"seq_length": SEQ_LENGTH + 1},
            {"shards": 2},
        )
    ]
    template = tmp_path / "own.jinja"
    own = config(chat=ChatConfig(template=str(template)))
    template.write_text(built_in("qwen3"))
    assert name(own) == names[0], "the text of a template counts, not where it is"
    template.write_text(built_in("qwen3") + "{# another one #}")
    names.append(name(own))
    assert len(set(names)) == len(names)
    assert name(config(worker_bytes=2_000)) == names[0], "it is of no account here"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"fim": FimConfig(rate=0.5)}, "data.build.fim.rate=0.5"),
    ({"filters": FilterConfig()}, "data.build.filters.enabled=true"),
    ({"shares": "published"}, "data.build.shares=published"),
    ({"target_tokens": 10_000}, "data.build.target_tokens=10000"),
    ({"epochs": 2.0}, "data.build.epochs=2"),
    ({"unknown_language": "keep"}, "data.build.unknown_language=keep"),
    ({"language_classifier": "a.npz"}, "data.build.language_classifier=a.npz"),
    ({"repository": RepositoryConfig(enabled=True)}, "data.build.repository"),
    ({"tokenizer": "train"}, "data.build.tokenizer=train"),
    ({"mixture": {"chat": 1, "code": 1}}, "there is no domain 'code'"),
    ({"sources": [SourceConfig(kind="chat", path="a", text_field="chat")]}, "text_field=chat"),
    ({"sources": [SourceConfig(kind="chat", path="a", domain="text")]}, "domain=text"),
    ({"sources": [SourceConfig(kind="chat", path="a", language_field="l")]}, "language_field=l"),
    (
        {"sources": [SourceConfig(kind="chat", path="a"), SourceConfig(kind="files", path="b")]},
        "kind=files beside a source of kind chat",
    ),
]


@pytest.mark.parametrize(("fields", "fact"), REFUSED, ids=[fact for _, fact in REFUSED])
def test_what_conversations_cannot_honour_is_refused(
    config: MakeConfig, fields: dict[str, Any], fact: str
) -> None:
    with pytest.raises(InputError) as refused:
        refuse_unusable(config(**fields))
    assert fact in str(refused.value)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ({"chat": ChatConfig(turns="last")}, "data.build.chat without a source of kind chat"),
        ({"tokenizer": "checkpoint"}, "data.build.tokenizer=checkpoint without"),
        (
            {"sources": [SourceConfig(kind="files", path="a", messages_field="chat")]},
            "messages_field=chat data.build.sources.0.kind=files",
        ),
        (
            {"sources": [SourceConfig(kind="files", path="a", markup="keep")]},
            "markup=keep data.build.sources.0.kind=files",
        ),
    ],
)
def test_what_only_conversations_have_is_refused_of_documents(
    fields: dict[str, Any], fact: str
) -> None:
    sources = {"sources": [SourceConfig(kind="files", path="a")]}
    data = data_config(name="t", seq_length=8, mixture={"text": 1}, **sources | fields)
    (problem,) = check_build(data)
    assert fact in problem.fact


def test_a_checkpoint_that_nobody_names(config: MakeConfig, tmp_path: Path) -> None:
    write(tmp_path / "chats/a.jsonl", CHATS)
    with pytest.raises(InputError, match=r"checkpoint\.init_from=RUN"):
        prepare(config(tokenizer="checkpoint"))


def test_a_template_of_another_tokenizer(
    config: MakeConfig, tmp_path: Path, tokenizer_folder: Path
) -> None:
    write(tmp_path / "chats/a.jsonl", CHATS)
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="<start_of_turn>"):
        prepare(config(chat=ChatConfig(template=str(template))))


TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
UNFIT = [
    ("{% for m in messages %}{% generation %}" + TURN + "{% endgeneration %}{% endfor %}", "enclo"),
    ("{% generation %}{% for m in messages %}" + TURN + "{% endfor %}{% endgeneration %}", "enclo"),
    ("{% for m in messages %}" + TURN + "{% endfor %}", "header would be learned"),
    ("{% for m in messages %}" + TURN + "<|endoftext|>{% endfor %}" + PROMPT, "within conversat"),
    (
        "{% for m in messages %}" + TURN.replace("<|im_end|>\n", "") + "{% endfor %}" + PROMPT
        + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
        "within conversat",
    ),
    (
        "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + PROMPT,
        "writes no system prompt",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fact"), UNFIT)
def test_a_template_by_which_the_wrong_part_would_be_learned(
    config: MakeConfig, tmp_path: Path, text: str, fact: str
) -> None:
    write(tmp_path / "chats/a.jsonl", CHATS)
    template = tmp_path / "own.jinja"
    template.write_text(text)
    chat = ChatConfig(template=str(template), system="Be brief.")
    with pytest.raises(InputError, match=fact):
        check_template(config(chat=chat))
    template.write_text("{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT)
    check_template(config(chat=chat))


def test_a_system_prompt_that_spells_a_special_token(config: MakeConfig, tmp_path: Path) -> None:
    write(tmp_path / "chats/a.jsonl", CHATS)
    with pytest.raises(InputError, match=r"data.build.chat.system spells <\|im_end\|>"):
        check_template(config(chat=ChatConfig(system="Be brief.<|im_end|>")))


def test_a_tokenizer_without_a_template(
    config: MakeConfig, tmp_path: Path, tokenizer_folder: Path
) -> None:
    """One that has the tokens of ChatML gets ours; another one is refused."""
    write(tmp_path / "chats/a.jsonl", CHATS)
    bare = tmp_path / "bare"
    bare.mkdir()
    text = (tokenizer_folder / "tokenizer.json").read_text()
    (bare / "tokenizer.json").write_text(text)
    assert name(config(tokenizer=str(bare))) == name(config(chat=ChatConfig(template="hermes")))
    (bare / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|begin|>"))
    with pytest.raises(InputError, match="has no chat template"):
        name(config(tokenizer=str(bare)))


@pytest.mark.parametrize("ends", [["</s>"], ["</s>", "<|endoftext|>"]])
def test_turns_that_end_with_the_end_of_documents(
    config: MakeConfig, tmp_path: Path, ends: list[str]
) -> None:
    """They are refused, unless the tokenizer has another one for documents."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet))
    made.add_special_tokens(["<s>", *ends])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / FILE).write_text(
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% endif %}{% endfor %}"
    )
    given = config(tokenizer=str(tmp_path))
    if len(ends) > 1:
        check_template(given)
        return
    with pytest.raises(InputError, match="</s> within conversations") as refused:
        check_template(given)
    assert "every turn would forget" in str(refused.value)
