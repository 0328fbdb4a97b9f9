"""Conversations as text, written by a chat template as transformers writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loopcoder.backends import require
from loopcoder.chat.answers import Answer, Marks, wanted_answers
from loopcoder.chat.call_formats import CODER_TAGS
from loopcoder.chat.calls import Format, format_of, read_answer
from loopcoder.chat.conversation import Conversation, Message, ToolCall, canonical
from loopcoder.chat.messages import REASONING, spelled_in
from loopcoder.chat.probes import PARTS, Part, parts_of
from loopcoder.chat.syntax import has_generation, names_in, texts_in
from loopcoder.chat.unusable import Unusable
from loopcoder.config.types import LearnedReasoning, LearnedTurns
from loopcoder.errors import LoopcoderError

Span = tuple[int, int]
"""Characters of a text: [first, behind the last)."""

_PROBES = ([("user", "a")], [("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")])
_MARKUP = re.compile(r"\w[^\w\s]|[^\w\s]\w")
"""A word with signs, as `<|im_end|>`, `</think>`, `###User`."""


@dataclass(frozen=True)
class Renderer:
    """Writes conversations with one template, in Jinja's sandbox."""

    template: str
    names: Mapping[str, str]
    """Special tokens as templates call them: `bos_token`, ..."""
    special: Sequence[str] = ()
    """Texts of all tokens that nobody may spell (`special_tokens`); one of them ends a turn in
    templates that do not mark answers."""

    @classmethod
    def of(cls, template: str, tokenizer: Any, names: Mapping[str, str]) -> Renderer:
        """Return a renderer for a tokenizer.

        Args:
            tokenizer: A `tokenizers.Tokenizer`.
            names: As of `templates.token_names_of`.
        """
        return cls(template, names, special_tokens(tokenizer, cls(template, names).written))

    @cached_property
    def written(self) -> str:
        """What the template writes of itself: its texts, and two conversations that say little; ""
        if it is no template."""
        try:
            with _refusing():
                texts = [*texts_in(self.template), *self.names.values()]
        except Unusable:
            return ""
        for probe in _PROBES:
            messages = [{"role": role, "content": content} for role, content in probe]
            try:
                texts.append(self.text(messages, add_generation_prompt=True))
            except Unusable:  # it knows no system, ...: rows tell
                continue
        return "\n".join(texts)

    @cached_property
    def marks_answers(self) -> bool:
        """Whether the template tells what the assistant says, by `{% generation %}`."""
        return has_generation(self.template)

    def reads(self, *fields: str) -> bool:
        """Whether the template names one of some fields, as `tools` or `tool_calls`.

        Raises:
            Unusable: template_error: it is no template.
        """
        with _refusing():
            return not names_in(self.template).isdisjoint(fields)

    @property
    def reads_reasoning(self) -> bool:
        """Whether the template has a place for what the assistant thinks."""
        return self.reads(*REASONING)

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> str:
        """Return a conversation as text.

        Args:
            messages: With OpenAI's fields; those that are None count as not there.
            tools: OpenAI's schemas of functions.
            add_generation_prompt: Go on to where the assistant answers.
            options: For the template, as `enable_thinking`.

        Raises:
            Unusable: template_error: the template refuses the conversation, or is none.
            InputError: what renders it is not installed.
        """
        options["add_generation_prompt"] = add_generation_prompt
        return self._rendered(messages, tools, **options)[0]

    def whole(self, conversation: Conversation) -> str:
        """Return a conversation as text; raises as `text` does."""
        form = canonical(conversation)
        return self.text(form["messages"], form.get("tools"))

    def with_spans(
        self,
        conversation: Conversation,
        *,
        reasoning: LearnedReasoning = "train",
        turns: LearnedTurns = "all",
    ) -> tuple[str, list[Span]]:
        """Return a conversation as text, and the parts of it that are learned.

        These are what the assistant says: what the template marks by `{% generation %}`; if it
        marks nothing, what comes behind the text that asks for an answer, up to the special token
        that ends the turn.

        Args:
            reasoning: context: reasoning, and all else in front of the answer, is not learned.
            turns: Which turns of the assistant are; a turn lasts until the user speaks again, with
                calls of tools and what is said to their results. Messages with `train=False` are
                not learned in any case.

        Raises:
            Unusable: the template cannot write the conversation; or it has no place for its tools
                or reasoning, writes a call that is read as another, or does not show which part of
                the text is whose.
            InputError: what renders it is not installed.
        """
        self._check_place(conversation)
        self._check_calls(conversation)
        form = canonical(conversation)
        messages, tools = form["messages"], form.get("tools")
        wanted = wanted_answers(conversation.messages, turns)
        text, answers = self._answers(messages, tools, wanted)
        if reasoning == "train" and (all(wanted.values()) or not self.marks_answers):
            return text, [(a.start, a.end) for a in answers if a.start < a.end]

        marks = Marks.of(messages, text)
        marked_text, marked = self._answers(marks.messages, tools, wanted)
        if len(marked) != len(answers):
            raise Unusable("turns_not_found", f"{len(answers)} blocks, and {len(marked)} marked")
        spans = []
        for answer, twin in zip(answers, marked, strict=True):
            owner = marks.owner(twin.of(marked_text)) if answer.owner is None else answer.owner
            if not wanted[owner]:
                continue
            start = answer.start
            if reasoning == "context":
                start += marks.before_content(owner, answer.of(text), twin.of(marked_text))
            if start < answer.end:
                spans.append((start, answer.end))
        return text, spans

    @cached_property
    def hides(self) -> frozenset[str]:
        """Which of `probes.PARTS` the template leaves out without a word."""
        return frozenset(name for name, part in PARTS.items() if not self._shows(part))

    def _shows(self, part: Part) -> bool:
        try:
            return part.word in self.whole(part.conversation)
        except Unusable:  # not without a word
            return True

    def _check_place(self, conversation: Conversation) -> None:
        """Refuse what the template would leave out without a word."""
        for name in PARTS:
            if name in self.hides and name in parts_of(conversation):
                raise Unusable(PARTS[name].reason)

    @cached_property
    def _format(self) -> Format:
        return format_of(self.template)

    def _check_calls(self, conversation: Conversation) -> None:
        """Refuse calls that are read as others once they are written: in tags a value stands as it
        is, and may end before its end."""
        if self._format.calls != "qwen3_coder":
            return
        for message in conversation.messages:
            for call in message.tool_calls:
                tag = spelled_in(call.arguments, CODER_TAGS)
                if tag and not self._is_read_back(call, conversation.tools):
                    raise Unusable("ambiguous_call", f"{call.name}: a value has {tag} in it")

    def _is_read_back(self, call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> bool:
        """Say whether a call is read as what it is where its values have tags."""
        text = self.whole(
            Conversation((Message("user", "a"), Message("assistant", "", None, (call,))))
        )
        read = read_answer(text, Format(self._format.calls), tools).tool_calls
        if [(one.name, {*one.arguments}) for one in read] != [(call.name, {*call.arguments})]:
            return False
        return all(
            _is_same(read[0].arguments[name], value)
            for name, value in call.arguments.items()
            if spelled_in(value, CODER_TAGS)
        )

    def _answers(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        wanted: Mapping[int, bool],
    ) -> tuple[str, list[Answer]]:
        text, spans = self._rendered(messages, tools, with_spans=self.marks_answers)
        if self.marks_answers:
            return text, [Answer(start, end) for start, end in spans]
        places = [place for place, is_wanted in wanted.items() if is_wanted]
        return text, [self._by_beginning(messages, tools, text, place) for place in places]

    def _by_beginning(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        text: str,
        place: int,
    ) -> Answer:
        """Return what message `place` says: the text of a conversation up to it ends where it does,
        and that of one up to the question where it begins."""
        asked = self.text(messages[:place], tools, add_generation_prompt=True)
        answered = self.text(messages[: place + 1], tools)
        if not (text.startswith(answered) and answered.startswith(asked)):
            raise Unusable("template_rewrites_turns", f"message {place}")
        start = len(asked)
        return Answer(start, start + self._turn_ends(answered[start:]), place)

    def _turn_ends(self, said: str) -> int:
        """Return the characters of an answer up to the special token that ends it; all of them if
        none does."""
        bare = said.rstrip()
        return len(bare) if bare.endswith(tuple(self.special)) else len(said)

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        with_spans: bool = False,
        **options: Any,
    ) -> tuple[str, list[Span]]:
        render = _engine()
        with _refusing():
            texts, spans = render(
                conversations=[[_given(message) for message in messages]],
                tools=[dict(tool) for tool in tools] if tools else None,
                chat_template=self.template,
                return_assistant_tokens_mask=with_spans,
                **{**self.names, **options},
            )
        return texts[0], spans[0] if with_spans else []


def _is_same(read: Any, value: Any) -> bool:
    """Say whether a value was read, or as its JSON where no schema says that it is no text."""
    if isinstance(read, str) and not isinstance(value, str):
        try:
            read = json.loads(read)
        except ValueError:
            return False
    return bool(read == value)


def special_tokens(tokenizer: Any, written: str = "") -> tuple[str, ...]:
    """Return the texts of a tokenizer's special tokens, and of the other added ones by which a
    template tells who speaks: not all tokenizers call theirs special.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        written: What the template writes. Words and blanks in it are no such tokens.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    return tuple(
        token.content
        for token in added
        if token.special or (token.content in written and _MARKUP.search(token.content))
    )


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn whatever a template does, a program of somebody else, into an Unusable."""
    try:
        yield
    except LoopcoderError:
        raise
    except Exception as error:
        raise Unusable("template_error", f"{type(error).__name__}: {error}"[:300]) from error


def _given(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are there: templates ask whether one is defined."""
    return {name: value for name, value in message.items() if value is not None}


def _engine() -> Any:
    """Return transformers' function that renders, which keeps templates compiled."""
    fact = "a conversation is rendered by transformers and jinja2"
    why = "templates are written for what transformers gives them"
    fix = "pip install 'transformers>=5.23,<6' 'jinja2>=3.1.6'"
    require("jinja2", fact, f"{why}; jinja2 is not installed", fix)
    module = "transformers.utils.chat_template_utils"
    found = require(module, fact, f"{why}; transformers is not installed", fix)
    return found.render_jinja_template
