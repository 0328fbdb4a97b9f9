"""What `loopcoder evaluate tasks=...` is asked, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcoder.cli import main as cli
from loopcoder.cli.evaluate import run
from loopcoder.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks=a"], "models are named by checkpoint="),
        (["tasks=a", "checkpoint=d", "server=http://x"], "models are named by checkpoint="),
        (["tasks=a", "checkpoint="], "it names nothing"),
        (["tasks=", "checkpoint=d"], "it names nothing"),
        (["tasks=a", "tasks=b", "checkpoint=d"], "tasks=a is given already"),
        (["tasks=a", "checkpoint=d", "model.num_loops=two"], "model.num_loops=1,2,3"),
        (["tasks=a", "checkpoint=d", "model.num_loops=0"], "model.num_loops=1,2,3"),
        (["tasks=a", "checkpoint=d", "precision=fp8_delayed"], "precision=bf16"),
        (["tasks=a", "server=http://x", "precision=bf16"], "its own"),
        (["tasks=a", "checkpoint=d", "eval.sequences_per_domain=3"], "human_eval.* and chat.*"),
        (["tasks=a", "checkpoint=d", "tasks.limt=3"], "tasks.limit"),
        (["tasks=human_eval", "checkpoint=d", "human_eval.samples=0"], "human_eval.samples"),
        (["tasks=human_eval", "checkpoint=d", "human_eval.samples=9"], "human_eval.temperature="),
        (["tasks=a", "checkpoint=d", "--all"], "checkpoint=DIR of each"),
        (["tasks=a", "checkpoint=d", "tasks.include_path=nowhere"], "is no folder"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        run(arguments)
    assert said in str(error.value)


def test_help_has_both_ways_and_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("eval.sequences_per_domain", "tasks.limit", "human_eval.sandbox", "server=URL"):
        assert words in text


def test_a_server_that_is_not_there_is_said_before_anything_long(tmp_path: Path) -> None:
    from loopcoder.evaluate.server import Server

    with pytest.raises(InputError, match=r"127.0.0.1:9/v1/models does not answer: .*refused"):
        Server("http://127.0.0.1:9")
