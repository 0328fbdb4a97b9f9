"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loopcoder.infer.request import Piece, Request
from loopcoder.infer.serve.bodies import ChatBody
from loopcoder.infer.serve.chat_turn import ChatTurn
from loopcoder.infer.serve.logprobs import chat_logprobs, check_told
from loopcoder.infer.serve.model import Served
from loopcoder.infer.serve.replies import Reply


class ChatCompletion(Reply):
    """Answers of the assistant to a conversation."""

    prefix, kind, kind_of_chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"
    body: ChatBody

    def __init__(self, body: ChatBody, served: Served):
        """
        Raises:
            Refused: the model has no chat template, or it refuses the conversation.
        """
        super().__init__(body, served.name)
        served.check_number(1, body.samples)
        self._bytes_of = served.bytes_of
        messages = [message.model_dump(exclude_unset=True) for message in body.messages]
        tools = body.offered
        text = served.rendered(messages, tools, body.chat_template_kwargs or {})
        ids = served.of_text(text, "messages")
        served.check_length(ids, body.most or 1)
        most = body.most or served.max_length - len(ids)
        told = (body.top_logprobs or 0) if body.logprobs else None
        self.requests = [
            Request(
                ids=ids,
                max_tokens=most,
                sampling=body.sampling(sample),
                stop=body.stops,
                stop_ids=body.stop_ids(served.eos),
                shown=served.prompts.shown,
                logprobs=told,
            )
            for sample in range(body.samples)
        ]
        check_told(self.requests)
        self._turns = [ChatTurn(served.prompts.reader(text, tools)) for _ in self.requests]

    def opening(self) -> Iterator[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        for number in range(len(self.requests)):
            yield {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, number: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": number,
            "message": self._turns[number].message(piece),
            "logprobs": self._told(piece),
            "finish_reason": self._turns[number].finish(piece),
        }

    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:
        told, turn = self._told(piece), self._turns[number]
        deltas = list(turn.deltas(piece))
        if not deltas and (piece.finish or told):
            deltas = [{}]
        for place, delta in enumerate(deltas):
            yield {
                "index": number,
                "delta": delta,
                "logprobs": told if place == 0 else None,
                "finish_reason": turn.finish(piece) if place == len(deltas) - 1 else None,
            }

    def _told(self, piece: Piece) -> dict[str, Any] | None:
        return chat_logprobs(self._bytes_of, piece.tokens) if self.body.logprobs else None
