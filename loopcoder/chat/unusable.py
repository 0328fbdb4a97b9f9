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
    "markup_in_text": "tags of reasoning, calls or results stand where they are not read",
    "unreadable_call": "an answer spells a call of a tool that cannot be read",
    "text_behind_call": "an answer goes on behind its calls, and templates write calls last",
    "surrogate": "half of a surrogate pair, which UTF-8 has no bytes for",
    "special_token_in_text": "what somebody says spells a special token of the tokenizer",
    "no_place_for_system": "a system prompt, and the template writes none",
    "no_place_for_tools": "tools, calls or results, and the template writes none",
    "no_place_for_reasoning": "reasoning, and the template writes none",
    "template_error": "the template refuses the conversation",
    "template_rewrites_turns": "the template writes a turn otherwise once others follow",
    "turns_not_found": "nothing tells which of the template's generation blocks is whose",
    "nothing_to_train": "no token is left to learn",
    "too_long": "more tokens than a sequence has",
    "end_of_document_inside": "the token that ends documents is within it",
}
"""By name, as counts and lists of drops have it."""


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
