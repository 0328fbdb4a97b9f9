"""What a corpus of conversations cannot be built with: whatever is of documents, or of others."""

from __future__ import annotations

from collections.abc import Iterator

from loopcoder.config.build import BuildConfig, RepositoryConfig
from loopcoder.config.chat import CHECKPOINT, ChatConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import as_override
from loopcoder.config.mixture import CHAT, CORPUS_EACH
from loopcoder.errors import Problem

_OWN = {"messages_field": None, "tools_field": None, "markup": "read"}
"""Fields of a source that only conversations have, and their defaults."""
_DOCUMENTS = ("language_field", "path_field", "repository_field")
"""Fields of a source that conversations do not have."""


def check_chat(data: DataConfig) -> Iterator[Problem]:
    """Yield what of `data` would be ignored by a build of conversations, or by one of documents."""
    build = data.build
    if not build.is_chat:
        yield from _only_of_chat(build)
        return
    for index, source in enumerate(build.sources):
        key = f"data.build.sources.{index}"
        if source.kind != "chat":
            yield Problem(
                f"{key}.kind={source.kind} beside a source of kind chat",
                "conversations are packed into sequences and have a mask of what is trained on: "
                "they are a corpus of their own",
                f"data=corpus {CORPUS_EACH}",
            )
            continue
        for name in _DOCUMENTS:
            if (value := getattr(source, name)) is not None:
                yield Problem(
                    f"{key}.{name}={value}",
                    "a conversation is no file of a repository and has no programming language",
                    f"{key}.{name}=null",
                )
        if source.text_field != "text":
            yield Problem(
                f"{key}.text_field={source.text_field}",
                "a conversation is read from its messages",
                f"{key}.messages_field={source.text_field} {key}.text_field=text",
            )
        if source.domain != "auto":
            why = f"conversations are the domain {CHAT}"
            yield Problem(f"{key}.domain={source.domain}", why, f"{key}.domain=auto")
    for field, value, wanted, why in _of_documents(build):
        if value != wanted:
            yield Problem(
                f"data.build.{field}={as_override(value)} with conversations",
                why,
                f"data.build.{field}={as_override(wanted)}",
            )
    if build.repository != RepositoryConfig():
        yield Problem(
            "data.build.repository with conversations",
            "only files of code are joined",
            "leave data.build.repository out",
        )
    if build.tokenizer == "train":
        yield Problem(
            "data.build.tokenizer=train with conversations",
            "conversations are for a model that knows its tokens already, and a template spells "
            "turns with special tokens of its tokenizer",
            f"data.build.tokenizer={CHECKPOINT} with checkpoint.init_from=RUN, or "
            "data.build.tokenizer=FOLDER of a checkpoint or of a model for transformers",
        )


def _of_documents(build: BuildConfig) -> Iterator[tuple[str, object, object, str]]:
    """Yield the fields that are of documents: name, value, what it has to be, and why."""
    per_language = "languages of code have shares, conversations are taken as they are"
    yield "fim.rate", build.fim.rate, 0.0, "nothing is rearranged inside a conversation"
    yield "filters.enabled", build.filters.enabled, False, "the filters judge documents"
    yield "shares", build.shares, "supply", per_language
    whole = "every conversation is packed once; a run that is longer reads them again"
    yield "target_tokens", build.target_tokens, None, whole
    yield "epochs", build.epochs, 1.0, whole
    classifier = "a conversation has no programming language"
    yield "language_classifier", build.language_classifier, None, classifier
    yield "unknown_language", build.unknown_language, "drop", classifier


def _only_of_chat(build: BuildConfig) -> Iterator[Problem]:
    if not build.sources:
        return
    if build.chat != ChatConfig():
        yield Problem(
            "data.build.chat without a source of kind chat",
            "only conversations have turns and a template",
            "data=chat path=CHATS.jsonl, or leave data.build.chat out",
        )
    if build.tokenizer == CHECKPOINT:
        yield Problem(
            f"data.build.tokenizer={CHECKPOINT} without a source of kind chat",
            "documents are for models from the start on",
            "data.build.tokenizer=FOLDER of the checkpoint, or data=chat",
        )
    for index, source in enumerate(build.sources):
        for name, unset in _OWN.items():
            if (value := getattr(source, name)) != unset:
                key = f"data.build.sources.{index}"
                yield Problem(
                    f"{key}.{name}={value} {key}.kind={source.kind}",
                    "only conversations have messages",
                    f"{key}.kind=chat, or {key}.{name}={as_override(unset)}",
                )
