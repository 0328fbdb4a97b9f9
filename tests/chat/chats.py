"""Random conversations, a tokenizer, and what transformers makes of both."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from loopcoder.chat.conversation import Conversation, Message, ToolCall

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
)
NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>"}
PUBLIC = Path(__file__).with_name("public")
_PIECES = (
    "loop", "gate", " ", "  ", "\n", "\n\n", "\t", "\r\n", "x = 1", "漢字", "ß", "🙂", "e\u0301",
    "\u2028", "\ue000", "<", "<|", "|>", "<|im_", "{{ x }}", "{% if %}", '"', "\\", "'", "<thinks>",
    "</tool_call>", "[1, 2]", "\x00", "👩\u200d🚀", "system", "assistant",
)  # fmt: skip


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level BPE, trained on some such text, with the tokens of two families."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    rng = random.Random(0)
    made.train_from_iterator([text(rng) for _ in range(200)], trainer)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return made


def text(rng: random.Random) -> str:
    """Return some pieces, blanks and ends of lines at the borders among them."""
    return "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 12)))


def said(rng: random.Random) -> str:
    """Return a text that says something."""
    found = text(rng)
    return found if found.strip() else found + "a"


def value(rng: random.Random, depth: int = 2) -> Any:
    """Return something of JSON."""
    if depth and rng.random() < 0.3:
        items = [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        return items if rng.random() < 0.5 else {said(rng): item for item in items}
    return rng.choice([None, True, False, rng.randint(-9, 10**12), rng.uniform(-1, 1), text(rng)])


def conversation(
    rng: random.Random, *, tools: bool = True, reasoning: bool = True, untrained: bool = False
) -> Conversation:
    """Return a conversation that is well-formed.

    Args:
        tools: It may have tools, with calls, several at a time, and their results.
        reasoning: The assistant may think first.
        untrained: Messages may have `train=False`.
    """
    names = [f"{rng.choice(('get', 'set'))}_{i}" for i in range(rng.choice((0, 1, 3)) * tools)]
    messages = []
    if rng.random() < 0.6:
        messages.append(Message("system", rng.choice(("", text(rng)))))
    for _ in range(rng.randint(1, 3)):
        for _ in range(rng.choice((1, 1, 1, 2))):
            messages.append(Message("user", said(rng)))
        steps = rng.choice((0, 1, 2)) * bool(names)
        for step in range(steps + 1):
            calls = tuple(
                ToolCall(
                    rng.choice(names),
                    {f"k{j}": value(rng) for j in range(rng.randint(0, 3))},
                    f"call_{step}_{i}" if rng.random() < 0.5 else None,
                )
                for i in range(rng.randint(1, 3) if step < steps else 0)
            )
            content = rng.choice(("", said(rng))) if calls else said(rng)
            thought = said(rng) if reasoning and rng.random() < 0.5 else None
            train = not untrained or rng.random() < 0.6
            messages.append(Message("assistant", content, thought, calls, train=train))
            messages += [Message("tool", text(rng), None, (), c.id, c.name) for c in calls]
    schemas = tuple(
        {
            "type": "function",
            "function": {
                "name": name,
                "description": text(rng),
                "parameters": {"type": "object", "properties": {"k0": {"description": text(rng)}}},
            },
        }
        for name in names
    )
    return Conversation(tuple(messages), schemas)


def public(name: str) -> str:
    """Return a template that a public tokenizer has, as well as it is remembered."""
    return (PUBLIC / f"{name}.jinja").read_text(encoding="utf-8")
