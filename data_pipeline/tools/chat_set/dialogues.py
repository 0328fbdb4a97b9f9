"""Conversations with tools: single, parallel and later calls, errors, missing values, no fit."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_pipeline.tools.chat_set.asks import Ask, ask_of, capital, fits, request
from data_pipeline.tools.chat_set.computed import COMPUTED, Computed
from data_pipeline.tools.chat_set.rows import (
    Message,
    Row,
    assistant,
    generator,
    joined_licences,
    user,
)
from data_pipeline.tools.chat_set.tool import Tool, words
from data_pipeline.tools.chat_set.values import spoken, value_of

_SHARES = {"api": 0.4, "function": 0.3, "computed": 0.22, "program": 0.08}
"""Of the requests, by the kind of their tool, as far as there are tools of it."""
_MADE = "by rule: the tool is a real signature; request, result and answer follow templates"
_COMPUTED = "by rule: tool and templates of loopcoder; the result was computed"


class Toolbox:
    """The tools that conversations are made of."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """Take tools of any kind; our own, whose results are computed, are added."""
        self._computed: dict[str, Computed] = {c.tool.name: c for c in COMPUTED}
        self._by_kind: dict[str, list[Tool]] = defaultdict(list)
        self._by_source: dict[str, list[Tool]] = defaultdict(list)
        for tool in [*tools, *(c.tool for c in COMPUTED)]:
            self._by_kind[tool.kind].append(tool)
            self._by_source[_place(tool)].append(tool)

    def tool(self, rng: random.Random) -> Tool:
        """Draw a tool."""
        kinds = sorted(self._by_kind)
        (kind,) = rng.choices(kinds, [_SHARES[kind] for kind in kinds])
        return rng.choice(self._by_kind[kind])

    def ask(self, rng: random.Random, tool: Tool | None = None) -> Ask:
        """Make a request, of a given tool or one that is drawn."""
        tool = tool or self.tool(rng)
        if tool.kind == "computed":
            return self._computed[tool.name].ask(rng)
        return ask_of(tool, rng)

    def computed(self, name: str) -> Computed:
        """Return one of our own tools."""
        return self._computed[name]

    def others(self, tools: Sequence[Tool], rng: random.Random) -> list[Tool]:
        """Draw some more tools, neighbours of the first one among them, with names of their own."""
        found = {tool.name: tool for tool in tools}
        near = self._by_source[_place(tools[0])]
        for _ in range(rng.choice((0, 0, 1, 2, 3, 4))):
            drawn = rng.choice(near) if rng.random() < 0.4 else self.tool(rng)
            if all(drawn.act != tool.act for tool in found.values()):
                found.setdefault(drawn.name, drawn)
        return list(found.values())[len(tools) :]


def _place(tool: Tool) -> str:
    """Return the module or service that a tool is of."""
    return tool.source.rpartition(".")[0]


def conversations(box: Toolbox, number: int, seed: int) -> Iterator[Row]:
    """Yield up to so many conversations of each kind."""
    for kind, make in _KINDS.items():
        # there are few ways to make a chain
        for index in range(number // 3 if make is _chain else number):
            row = make(box, generator(seed, kind, str(index)))
            if row is not None:
                yield row


def _row(
    kind: str, messages: Sequence[Message], tools: Sequence[Tool], rng: random.Random, *,
    asked: Sequence[Tool],
) -> Row:  # fmt: skip
    listed = rng.sample(tools, len(tools))
    made = _COMPUTED if all(tool.kind == "computed" for tool in asked) else _MADE
    licence = joined_licences(tool.licence for tool in tools)
    return Row(kind, messages, asked[0].source, licence, made, [tool.plain() for tool in listed])


def _called(asks: Sequence[Ask], rng: random.Random, reasoning: str) -> Message:
    """Return the message that calls, all at once."""
    calls = [
        {
            "id": f"call_{rng.randrange(16**8):08x}",
            "type": "function",
            "function": {"name": ask.tool.name, "arguments": json.dumps(
                ask.arguments, ensure_ascii=False)},
        }
        for ask in asks
    ]  # fmt: skip
    return assistant("", reasoning) | {"tool_calls": calls}


def _results(call: Message, contents: Sequence[str]) -> list[Message]:
    return [
        {
            "role": "tool", "tool_call_id": one["id"], "name": one["function"]["name"],
            "content": content,
        }
        for one, content in zip(call["tool_calls"], contents, strict=True)
    ]  # fmt: skip


def _told(ask: Ask) -> Message:
    return assistant(ask.answer, f"The tool returned {ask.result}. I tell the user what that says.")


def _exchange(ask: Ask, rng: random.Random) -> list[Message]:
    """Return a request and the call, with result and answer where there are any."""
    call = _called([ask], rng, ask.reasoning)
    if not ask.answer:
        return [user(ask.text), call]
    return [user(ask.text), call, *_results(call, [ask.result]), _told(ask)]


def _single(box: Toolbox, rng: random.Random) -> Row:
    ask = box.ask(rng)
    tools = [ask.tool, *box.others([ask.tool], rng)]
    return _row("tool_call", _exchange(ask, rng), tools, rng, asked=[ask.tool])


_ALSO = ("{a} Also: {b}", "{a} And: {b}", "Two things. {a} {b}", "{a}\n\n{b}", "1. {a}\n2. {b}")


def _parallel(box: Toolbox, rng: random.Random) -> Row | None:
    """Two requests at once, of one tool or two."""
    first = box.ask(rng)
    second = box.ask(rng, first.tool if rng.random() < 0.5 else None)
    if not first.arguments or first.arguments == second.arguments:
        return None
    asked = list({ask.tool.name: ask.tool for ask in (first, second)}.values())
    text = rng.choice(_ALSO).format(a=first.text, b=second.text)
    thought = (
        "These are two requests that do not depend on each other, so I make both calls at once. "
        f"First: {first.reasoning} Second: {second.reasoning}"
    )
    call = _called([first, second], rng, thought)
    messages = [user(text), call]
    if first.answer and second.answer:
        said = f"{first.answer} {second.answer}"
        messages += _results(call, [first.result, second.result])
        messages.append(assistant(said, "Both results are there; I tell them in the order asked."))
    tools = [*asked, *box.others(asked, rng)]
    return _row("tool_parallel", messages, tools, rng, asked=asked)


_NEXT = ("Thanks. {b}", "Good. Next: {b}", "{b}", "And now this: {b}", "OK, thank you. {b}")


def _later(box: Toolbox, rng: random.Random) -> Row | None:
    """A second request after the answer to the first."""
    first = box.ask(rng)
    if not first.answer:
        return None
    near = box.others([first.tool], rng)
    tool = rng.choice([first.tool, *near, *near]) if rng.random() < 0.8 else None
    second = box.ask(rng, tool)
    asked = list({ask.tool.name: ask.tool for ask in (first, second)}.values())
    second = replace(second, text=rng.choice(_NEXT).format(b=second.text))
    messages = [*_exchange(first, rng), *_exchange(second, rng)]
    tools = list({tool.name: tool for tool in [*asked, *near]}.values())
    return _row("tool_later", messages, tools, rng, asked=asked)


_QUESTIONS = (
    "Which {name} should I use?",
    "What is the {name}?",
    "I can do that. Please tell me the {name}.",
    "To {act} I need the {name}. Which one is it?",
)
_REPLIES = (
    "{value}",
    "It is {value}.",
    "Use {value}.",
    "{value}, please.",
    "The {name} is {value}.",
)


def _asks(box: Toolbox, rng: random.Random) -> Row | None:
    """A required value is missing: the assistant asks for it and then calls."""
    tool = box.tool(rng)
    required = [p for p in tool.parameters if p.required]
    if tool.kind == "computed" or not required:
        return None
    missing, *given = rng.sample(required, len(required))
    values = {p.name: value_of(p, rng) for p in required}
    shown = {name: spoken(value, rng) for name, value in values.items()}
    named = words(missing.name) if len(missing.name) > 2 else f"`{missing.name}`"
    question = rng.choice(_QUESTIONS).format(name=named, act=tool.act)
    reply = rng.choice(_REPLIES).format(value=shown[missing.name], name=named)
    whole = Ask(tool, reply, values, "", "", shown)
    thought = (
        f"{fits(tool)} It requires `{missing.name}`, and the request does not say what that is. "
        "I must not invent it, so I ask."
    )
    after = f"Now `{missing.name}` is known. {whole.derived}"
    messages = [
        user(request(tool, given, shown, rng)),
        assistant(question, thought),
        user(reply),
        _called([whole], rng, after),
    ]
    return _row("tool_asks", messages, [tool, *box.others([tool], rng)], rng, asked=[tool])


_UNFIT = (
    "None of the tools that I have can {act}. What I can do: {others}.",
    "I cannot {act} with my tools. They can: {others}.",
    "There is no tool here to {act}. With the ones I have I could {others}.",
)


def _unfit(box: Toolbox, rng: random.Random) -> Row | None:
    """No tool does what is asked for."""
    ask = box.ask(rng)
    far = [t for t in box.others([ask.tool], rng) if _place(t) != _place(ask.tool)]
    if not far or ask.tool.kind == "computed":
        return None
    told = ", ".join(tool.act for tool in far[:-1])
    told = f"{told} and {far[-1].act}" if told else far[-1].act
    text = rng.choice(_UNFIT).format(act=ask.tool.act, others=told)
    thought = (
        f"The user wants to {ask.tool.act}. The tools are {', '.join(f'`{t.name}`' for t in far)}: "
        "none of them does that. A call of another one would be wrong, so I say so."
    )
    row = _row("tool_unfit", [user(ask.text), assistant(text, thought)], far, rng, asked=far)
    return replace(row, made="by rule: the tools are real signatures, none of which fits")


_ERRORS = (
    ("{value} was not found", "{value} was not found. Is the {name} spelled correctly?"),
    ("permission denied: {value}", "permission was denied for {value}. You may need more rights."),
    ("{name} is not valid: {value}", "{value} is not valid as {name}. Which one should I use?"),
    ("request timed out", "the request timed out. Shall I try it again?"),
    ("service unavailable", "the service is not available at the moment. Shall I try it later?"),
)


def _error(box: Toolbox, rng: random.Random) -> Row | None:
    """The tool reports an error, which the assistant passes on."""
    ask = box.ask(rng)
    texts = [name for name, value in ask.arguments.items() if isinstance(value, str)]
    if ask.tool.kind == "computed" or not texts:
        return None
    name = rng.choice(texts)
    of: Mapping[str, Any] = {"name": words(name), "value": ask.arguments[name]}
    error, told = (text.format(**of) for text in rng.choice(_ERRORS))
    said = rng.choice((f"That did not work: {told}", f"`{ask.tool.name}` failed: {told}"))
    call = _called([ask], rng, ask.reasoning)
    thought = f'The tool reports an error: "{error}". I must not say that it worked.'
    result = json.dumps({"error": capital(error)}, ensure_ascii=False)
    messages = [user(ask.text), call, *_results(call, [result]), assistant(said, thought)]
    return _row(
        "tool_error", messages, [ask.tool, *box.others([ask.tool], rng)], rng, asked=[ask.tool]
    )


_CHAINS = (
    ("add", "a", "{first} Then add {other} to the result.", "b"),
    ("multiply", "a", "{first} Then multiply that by {other}.", "b"),
    ("to_base", "number", "{first} And write the result in base {other}.", "base"),
    ("is_prime", "n", "{first} Is the result a prime number?", None),
    ("to_roman", "n", "{first} How is that written as a Roman numeral?", None),
)
_WHOLE = ("add", "greatest_common_divisor", "count_words", "days_between", "multiply")


def _chain(box: Toolbox, rng: random.Random) -> Row | None:
    """The result of one call is what the next one needs."""
    first = box.ask(rng, box.computed(rng.choice(_WHOLE)).tool)
    name, takes, text, other = rng.choice(_CHAINS)
    number = json.loads(first.result)["result"]
    if not 1 < number < (3000 if name == "to_roman" else 10**7) or first.tool.name == name:
        return None
    second = box.computed(name).ask(rng, **{takes: number})
    text = text.format(first=first.text, other=second.arguments[other] if other else "")
    after = f"The first result is {number}. It is the `{takes}` of `{name}`, which I call now."
    before = f"{first.reasoning} The rest needs its result, so this call comes first."
    calls = [_called([first], rng, before), _called([second], rng, after)]
    messages = [
        user(text), calls[0], *_results(calls[0], [first.result]),
        calls[1], *_results(calls[1], [second.result]),
        assistant(f"{first.answer} {second.answer}", "Both steps are done; I tell both results."),
    ]  # fmt: skip
    asked = [first.tool, second.tool]
    return _row("tool_chain", messages, [*asked, *box.others(asked, rng)], rng, asked=asked)


_KINDS: dict[str, Callable[[Toolbox, random.Random], Row | None]] = {
    "tool_call": _single,
    "tool_parallel": _parallel,
    "tool_later": _later,
    "tool_asks": _asks,
    "tool_unfit": _unfit,
    "tool_error": _error,
    "tool_chain": _chain,
}


def in_words(row: Row, box: Toolbox, rng: random.Random) -> Row:
    """Return a question that needs no tool, asked where there are some."""
    first = box.tool(rng)
    tools = [first, *box.others([first], rng)]
    question, answer = row.messages
    names = ", ".join(f"`{tool.name}`" for tool in tools)
    thought = f"This is a question that I can answer myself. The tools, {names}, are not about it."
    thought += f" {answer['reasoning_content']}" if "reasoning_content" in answer else ""
    listed = _row("tool_words", [question, assistant(answer["content"], thought)], tools, rng,
                  asked=tools)  # fmt: skip
    licence = joined_licences([row.licence, listed.licence])
    made = f"{row.made}; the tools, real signatures, were added by rule"
    return replace(listed, source=row.source, licence=licence, made=made)
