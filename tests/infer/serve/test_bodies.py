"""What reading a wrong body costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from loopcoder.infer.serve.bodies import Body, ChatBody, CompletionBody

WRONG = [None] * 1000
MANY = {f"field {i}": 1 for i in range(1000)}


def of_user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (CompletionBody, {"prompt": WRONG}),
        (CompletionBody, {"prompt": [1, *WRONG]}),
        (CompletionBody, {"prompt": [WRONG]}),
        (CompletionBody, {"prompt": [[one] for one in WRONG]}),
        (CompletionBody, {"prompt": "", "stop": WRONG}),
        (CompletionBody, {"prompt": "", "stop_token_ids": WRONG}),
        (CompletionBody, {"prompt": ""} | MANY),
        (CompletionBody, {"prompt": "", "stream": True, "stream_options": MANY}),
        (ChatBody, {"messages": WRONG}),
        (ChatBody, of_user(WRONG)),
        (ChatBody, of_user([{"type": "text", "text": ""} | MANY])),
        (ChatBody, of_user("") | {"tools": WRONG}),
    ],
)
def test_a_body_has_few_errors_however_much_is_wrong(
    schema: type[Body], body: dict[str, Any]
) -> None:
    """pydantic keeps some 3 KB for each."""
    with pytest.raises(ValidationError) as found:
        schema.model_validate_json(json.dumps(body))
    assert found.value.error_count() < 10
