"""Why a conversation cannot be trained on."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "no_messages": "the row has no conversation in a form that is known",
    "missing_role": "a message names no role",
    "unknown_role": "a role other than system, user, assistant and tool",
    "content_not_text": "the content of a message is an image, a number, ...",
    "empty_turn": "a message of the user or the assistant says nothing",
    "no_assistant_turn": "nobody answers",
    "roles_out_of_order": "an answer to nobody, a result without a call, a call without a result",
    "bad_tools": "the tools are no list of JSON schemas of functions with names of their own",
    "invalid_tool_json": "the arguments of a call are no JSON object",
    "unknown_tool": "a call of a function that is not among the tools",
    "bad_train_flag": "train or weight of a message is neither true (1) nor false (0)",
    "bad_reasoning": "reasoning is not closed, is there twice, or has its own tags in it",
    "markup_in_text": "tags of reasoning, calls or results stand where they are not read",
    "unreadable_call": "an answer spells a call of a tool that cannot be read",
    "text_behind_call": "an answer goes on behind its calls, and templates write calls last",
    "surrogate": "half of a surrogate pair, which UTF-8 has no bytes for",
    "special_token_in_text": "what somebody says spells a special token of the tokenizer",
    "no_place_for_system": "a system prompt, and the template writes none",
    "no_place_for_tools": "tools, calls or results, and the template writes none",
    "no_place_for_reasoning": "reasoning, and the template writes none",
    "ambiguous_call": "the template writes a call that is read as another",
    "template_error": "the template refuses the conversation",
    "template_rewrites_turns": "the template writes a turn otherwise once others follow",
    "turns_not_found": "nothing tells which of the template's generation blocks is whose",
    "nothing_to_train": "no token is left to learn",
    "too_long": "more tokens than a sequence has",
    "too_large": "more bytes than a document may have",
    "end_of_document_inside": "the token that ends documents is within it",
}
"""By name, as counts and lists of drops have it."""
_SPELLED = "{source}.markup=keep, which leaves tags as text, if no turn of a tool answers them"
_OTHER_TEMPLATE = "data.build.chat.template=hermes or qwen3, or another that"
FIXES: Mapping[str, str] = {
    "no_messages": "{source}.messages_field=COLUMN, one with a list of messages or its JSON, or "
    "rows in one of the other forms of docs/chats.md; what str() of Python writes is no JSON",
    "missing_role": "messages with role and content, or from and value",
    "unknown_role": "messages of system, user, assistant and tool, or of ShareGPT's roles",
    "content_not_text": "rows whose contents are texts",
    "empty_turn": "rows without users and answers that say nothing",
    "no_assistant_turn": "{source}.messages_field=COLUMN, one in which somebody answers",
    "roles_out_of_order": "rows in which the system speaks first, then users and the assistant "
    "in turn, and a result follows each call; {source}.markup=read where calls are text",
    "bad_tools": "{source}.tools_field=COLUMN with OpenAI's schemas, a list or its JSON; each with "
    "a name of its own, without blanks, < and >",
    "invalid_tool_json": "calls of the assistant, each with a name without blanks, < and >, and "
    "arguments or parameters: one object or its JSON, with each key once",
    "unknown_tool": "tools with all functions that are called, or none",
    "bad_train_flag": "train true or false, or weight 1 or 0",
    "bad_reasoning": "answers with one <think> block, closed, or a field of reasoning without such "
    "tags; markup=keep does not help",
    "markup_in_text": f"{_SPELLED}; or rows in which they stand where they are read",
    "unreadable_call": f"{_SPELLED}; or calls as an object of name and arguments in JSON",
    "text_behind_call": f"{_SPELLED}; or rows whose answers end with their calls",
    "surrogate": "texts that are whole in UTF-8",
    "special_token_in_text": "data.build.chat.special_tokens=keep where texts only speak of such "
    "tokens, as system prompts that explain <tool_call> do; conversations that no template has "
    "written yet where they are borders of turns",
    "no_place_for_system": f"{_OTHER_TEMPLATE} writes system prompts",
    "no_place_for_tools": f"{_OTHER_TEMPLATE} writes tools",
    "no_place_for_reasoning": "data.build.chat.template=qwen3, or another that writes reasoning; "
    "or data.build.chat.reasoning=drop",
    "ambiguous_call": "data.build.chat.template=hermes or qwen3, which write calls in JSON",
    "template_error": f"{_OTHER_TEMPLATE} takes such conversations",
    "template_rewrites_turns": "data.build.chat.turns=last, or data.build.chat.template=qwen3, "
    "or another that keeps turns as they are",
    "turns_not_found": "data.build.chat.template=FILE with {{% generation %}} around each answer",
    "nothing_to_train": "messages of the assistant without train: false, or other conversations",
    "too_long": "a larger data.seq_length, or data.build.chat.too_long=cut",
    "too_large": "rows that hold less each: parts of the conversation, or shorter results of tools",
    "end_of_document_inside": "conversations that do not spell the end of documents",
}
"""What to do about each of REASONS."""


def fix_of(reason: str, source: str = "data.build.sources.N") -> str:
    """Return what to do about one of REASONS.

    Args:
        source: Key of the source whose rows have it.
    """
    return FIXES[reason].format(source=source)


class Unusable(Exception):
    """A conversation that is not trained on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """
        Args:
            reason: One of REASONS.
            detail: What was found, for people.
        """
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        about = self.detail or REASONS.get(self.reason)
        return f"{self.reason}: {about}" if about else self.reason
