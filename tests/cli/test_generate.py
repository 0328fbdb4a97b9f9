"""`loopcoder generate`: prompts, what is printed of their answers, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loopcoder.chat.templates import built_in
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.cli import answers
from loopcoder.cli import generate as generate_verb
from loopcoder.cli import main as cli
from loopcoder.cli.given_prompts import TEXTS_VARIABLE, GivenPrompt, handed_on, split_prompts
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY, InputError
from loopcoder.infer.engine import Engine
from loopcoder.infer.loading import load_decoder
from loopcoder.infer.prompts import Prompts
from loopcoder.infer.request import Answer, Piece, Request, Sampling, Token
from loopcoder.infer.text import TextStream
from tests.conftest import fresh_seed
from tests.hf.folders import made

PROMPT, OTHER = "def add(a, b):", "loop gate"


@pytest.fixture(scope="module")
def checkpoint(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder, seed = tmp_path_factory.mktemp("generate"), fresh_seed()
    print(f"LOOPCODER_TEST_SEED={seed}")
    return made(folder, seed).checkpoint


def expected(checkpoint: Checkpoint, text: str, most: int, **fields: Any) -> Answer:
    """Return the answer of an engine of its own."""
    loaded = load_decoder(checkpoint, num_places=1, max_length=200)
    prompts = Prompts.of_source(loaded.source)
    request = Request(prompts.of_text(text), most, **({"stop_ids": prompts.end_ids} | fields))
    return Engine(loaded.decoder, prompts.tokenizer).generate([request])[0]


def generate(checkpoint: Checkpoint, *arguments: str) -> int:
    return cli.main(["generate", f"checkpoint={checkpoint.path}", *arguments])


def refused(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert generate(checkpoint, *arguments) == EXIT_BAD_INPUT
    return capsys.readouterr().err


def test_one_answer_is_printed_alone(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(checkpoint, f"prompt={PROMPT}", "generate.max_tokens=30") == EXIT_DONE
    out, err = capsys.readouterr()
    answer = expected(checkpoint, PROMPT, 30)
    assert out == answer.text + "\n"
    assert f"{len(answer.tokens)} tokens in" in err
    assert re.search(r" s, prompts [\d,.]+ tokens/s, answers [\d,.]+ tokens/s; ", err)


def test_several_answers_stand_in_order_under_headings(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path(tmp_path / "given.py").write_text(f"{OTHER}\n")
    given = [f"prompt={PROMPT}", "file=given.py", "prompt="]
    assert generate(checkpoint, *given, "generate.max_tokens=12", "generate.places=2") == EXIT_DONE
    out, err = capsys.readouterr()
    texts = [PROMPT, f"{OTHER}\n", ""]
    first, second, third = [expected(checkpoint, text, 12).text for text in texts]
    assert out == f"== {PROMPT}\n{first}\n== given.py\n{second}\n== \n{third}\n"
    assert "the prompt is empty" in err and "<|endoftext|>" in err


def test_objects_and_draws_of_a_seed(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(OTHER.encode())))
    settings = ["generate.temperature=1.5", "generate.top_k=40", "generate.seed=7"]
    settings += ["generate.max_tokens=20", "generate.stop=[e,zz]"]
    given = [f"prompt={PROMPT}", "file=-", "--json", *settings]
    assert generate(checkpoint, *given) == EXIT_DONE
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sampling = Sampling(temperature=1.5, top_k=40, seed=7)
    names = {"prompt": PROMPT}, {"file": "-"}
    for line, name, text in zip(lines, names, (PROMPT, OTHER), strict=True):
        answer = expected(checkpoint, text, 20, sampling=sampling, stop=("e", "zz"))
        assert line == name | {
            "text": answer.text,
            "ids": answer.ids,
            "finish": answer.finish,
            "stopped_by": answer.stopped_by,
        }


def test_ctrl_c_prints_what_has_come(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Engine.step, []

    def interrupted(self: Engine) -> bool:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt("Ctrl-C before the end of the answer")
        return step(self)

    monkeypatch.setattr(Engine, "step", interrupted)
    given = [f"prompt={PROMPT}", f"prompt={OTHER}", "generate.ignore_end=true"]
    assert generate(checkpoint, *given) == EXIT_RETRY
    out, err = capsys.readouterr()
    monkeypatch.undo()
    # a pass gives each a token, and so does every step
    texts = [expected(checkpoint, text, 5).text for text in (PROMPT, OTHER)]
    assert out == f"== {PROMPT}\n{texts[0]}\n== {OTHER}\n{texts[1]}\n"
    assert "10 tokens" in err and "cancelled" in err and "Ctrl-C" in err


def test_nothing_goes_on_where_nobody_reads(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "nobody_reads", lambda: True)
    assert generate(checkpoint, f"prompt={PROMPT}") == EXIT_DONE
    assert "0 tokens" in capsys.readouterr().err


def test_another_number_of_loops(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"prompt={PROMPT}", "model.num_loops=1", "--json", "generate.max_tokens=8"]
    assert generate(checkpoint, *given) == EXIT_DONE
    ids = json.loads(capsys.readouterr().out)["ids"]
    decoder = load_decoder(checkpoint, num_places=1, max_length=99, num_loops=1).decoder
    prompts = Prompts.of_source(load_decoder(checkpoint, num_places=1, max_length=9).source)
    logits = decoder.prefill({0: prompts.of_text(PROMPT)})
    for token in ids:
        assert int(logits.argmax()) == token
        logits = decoder.step([0], torch.tensor([token]))


def test_a_conversation(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokenizers that are trained here have the tokens of ChatML."""
    given = ["prompt=Why?", "--chat", "generate.system=Be short.", "generate.max_tokens=6"]
    assert generate(checkpoint, *given, "generate.ignore_end=true") == EXIT_DONE
    text = (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    out, err = capsys.readouterr()
    assert out == expected(checkpoint, text, 6, stop_ids=frozenset()).text + "\n"
    assert "ChatML" in err and "pretrained" in err


def test_long_prompts_are_told(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = checkpoint.config().data.seq_length
    prompts = Prompts.of_source(load_decoder(checkpoint, num_places=1, max_length=9).source)
    text = "x"
    while len(prompts.of_text(text)) <= trained:
        text += f"\n{text}"
    tokens = len(prompts.of_text(text))
    monkeypatch.setattr(answers, "MANY_TOKENS", tokens + 1)
    assert generate(checkpoint, f"prompt={text}", "generate.max_tokens=1") == EXIT_DONE
    err = capsys.readouterr().err
    assert f"a prompt has {tokens:,} tokens" in err and f"sequences of {trained:,}" in err
    assert "reading" not in err and "answers" not in err
    given = [f"prompt={text}", f"prompt={PROMPT}", "generate.max_tokens=1"]
    assert generate(checkpoint, *given) == EXIT_DONE
    assert f"reading {tokens + len(prompts.of_text(PROMPT)):,} tokens" in capsys.readouterr().err
    assert generate(checkpoint, f"prompt={PROMPT}", "generate.max_tokens=1") == EXIT_DONE
    assert "a prompt has" not in capsys.readouterr().err


def test_processes_that_share_a_model_get_what_is_asked(
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """They find what stood on standard input, and in a pipe (`file=<(...)`)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[b"y = 2\r\n"])
    writer.start()
    commands: list[tuple[str, ...]] = []

    def start_workers(config: Config, size: int, command: Sequence[str]) -> int:
        assert (config.parallel.tp, size) == (2, 2)
        commands.append(tuple(command))
        texts = [GivenPrompt("x = 1\n", "-"), GivenPrompt("y = 2\r\n", str(pipe))]
        writer.join()
        assert split_prompts(command)[0] == [GivenPrompt(PROMPT), *texts]
        return 76

    monkeypatch.setattr(generate_verb, "start_workers", start_workers)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x = 1\n")))
    given = ["parallel.tp=2", f"prompt={PROMPT}", "--json", "generate.seed=3", "file=-"]
    given.append(f"file={pipe}")
    assert cli.main(["generate", f"checkpoint={checkpoint.path.parents[1]}", *given]) == 76
    place = f"checkpoint={checkpoint.place}"
    (command,) = commands
    assert command[:5] == ("generate", place, f"prompt={PROMPT}", "file=-", f"file={pipe}")
    assert set(command[5:]) == {"parallel.tp=2", "generate.seed=3", "--json"}
    assert TEXTS_VARIABLE not in os.environ


def test_conversations_are_handed_on(tmp_path: Path) -> None:
    """Next to a text of the same file; standard input is read once."""
    (tmp_path / "chat.json").write_text("[]")
    given = [f"{key}={tmp_path / 'chat.json'}" for key in ("messages", "file", "messages")]
    prompts, _ = split_prompts(given)
    assert [one.is_conversation for one in prompts] == [True, False, True]
    with handed_on(prompts) as handed:
        (tmp_path / "chat.json").unlink()
        assert handed == given and split_prompts(handed) == (prompts, [])
    with pytest.raises(InputError, match="once"):
        split_prompts(["messages=-", "file=-"])


def test_nothing_is_left_of_prompts_that_were_handed_on_in_vain() -> None:
    with pytest.raises(KeyboardInterrupt), handed_on([GivenPrompt("a", "-")]):
        assert TEXTS_VARIABLE in os.environ
        raise KeyboardInterrupt
    assert TEXTS_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no prompt"),
        (["prompt=a", "generate.max_tokens=99999999"], "fix: generate.max_tokens="),
        (["prompt=a", "generate.top_p=0"], "generate.top_p"),
        (["prompt=a", "generate.temperatur=1"], "generate.temperature"),
        (["prompt=a", "generate.stop=['']"], "an empty stop string"),
        (["prompt=a", "generate.system=b"], "--chat"),
        (["prompt=a", "generate.chat_template_kwargs={a: 1}"], "--chat"),
        (["prompt=a", "generate.tool_format=none"], "--chat"),
        (["prompt=a", "--chat", "generate.chat_template_kwargs={a: 1}"], "no such option"),
        (["prompt=a", "train.max_steps=3"], "model.num_loops, precision"),
        (["prompt=a", "precision=fp8_tensorwise"], "precision=bf16"),
        (["prompt=a", "model.num_loops=0"], "model.num_loops"),
        (["prompt=a", "parallel.pp=2"], "parallel.tp=N"),
        (["prompt=a", "parallel.tp=2", "parallel.sp=true"], "parallel.sp=true"),
        (["prompt=a", "parallel.recompute=full"], "parallel.recompute=full"),
        (["prompt=a", "parallel.tp=2", "parallel.nproc_per_node=4"], "nproc_per_node=4"),
        (["prompt=a", "parallel.tp=3"], "parallel.tp=3"),
        (["file=nowhere.py"], "file=nowhere.py"),
        (["file=-", "file=-"], "standard input is read once"),
        (["prompt=a", "checkpoint=other"], "one checkpoint or folder"),
        (["prompt=a", "--jsn"], "--json"),
    ],
)
def test_refused(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(checkpoint, capsys, *arguments)


def test_a_file_that_is_no_text(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path(tmp_path / "data").write_bytes(b"abc\xff")
    assert "not UTF-8" in refused(checkpoint, capsys, "file=data")


@pytest.mark.parametrize(
    ("verb", "others"), [("generate", ["prompt=a"]), ("serve", ["serve.port=0"])]
)
def test_a_decoder_is_made_as_asked(
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    others: list[str],
) -> None:
    command = [verb, f"checkpoint={checkpoint.path}", *others]
    assert cli.main([*command, f"{verb}.kernels=cuda"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{verb}.kernels=cuda\n" in said and f"{verb}.kernels=stock" in said

    def seen(*_: Any, **given: Any) -> Any:
        raise InputError.of(f"{given['kernels']} {given['cuda_graphs']}", "it is seen", "nothing")

    monkeypatch.setattr("loopcoder.infer.loading.load_decoder", seen)
    asked = [f"{verb}.kernels=stock", f"{verb}.cuda_graphs=off"]
    for settings, found in ((asked, "stock off"), ([], "auto auto")):
        assert cli.main([*command, *settings]) == EXIT_BAD_INPUT
        assert found in capsys.readouterr().err


def test_a_conversation_from_a_file(
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With tools, options of the template, reasoning and calls in the answer."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    call = {"function": {"name": "look", "arguments": '{"x": 1}'}, "type": "function"}
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    (tmp_path / "chat.json").write_text(json.dumps({"messages": messages, "tools": tools}))
    rendered: list[str] = []

    class Told(Prompts):
        """Of weights whose template is Qwen3's."""

        @classmethod
        def of_source(cls, *arguments: Any) -> Prompts:
            return super().of_source(*arguments).speaking(built_in("qwen3"))

        def of_text(self, text: str) -> tuple[int, ...]:
            rendered.append(text)
            return super().of_text("a")

    said = '<think>\nLoop\n</think>\n\nI look.\n<tool_call>\n{"name": "look", "arguments": '
    said += '{"x": 2}}\n</tool_call><tool_call>'

    def told(self: Engine, request: Request, receive: Any) -> int:
        ids = self.tokenizer.encode(said, add_special_tokens=False).ids
        text = TextStream(self.bytes_of, (), request.shown)
        for token in ids:
            receive(Piece(text.add(token), (Token(token),)))
        receive(Piece(text.end(), finish="stop"))
        return 0

    monkeypatch.setattr("loopcoder.infer.prompts.Prompts", Told)
    monkeypatch.setattr(Engine, "submit", told)
    given = ["--chat", f"messages={tmp_path / 'chat.json'}", "generate.system=Be short."]
    given.append("generate.chat_template_kwargs={enable_thinking: false}")
    assert generate(checkpoint, *given) == EXIT_DONE
    out, err = capsys.readouterr()
    assert out == (
        '[reasoning]\nLoop\n[answer]\nI look.\n[call] look {"x": 2}\n[answer]\n<tool_call>\n'
    )
    assert "unclosed_call" in err
    assert rendered[0].startswith("<|im_start|>system\nBe short.\n\n# Tools")
    assert '"arguments": {"x": 1}}\n</tool_call><|im_end|>' in rendered[0]
    assert rendered[0].endswith("assistant\n<think>\n\n</think>\n\n")
    assert generate(checkpoint, *given, "--json") == EXIT_DONE
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == said and found["reasoning"] == "Loop"
    assert found["content"] == "I look.\n<tool_call>"
    function = {"name": "look", "arguments": {"x": 2}}
    assert found["tool_calls"] == [{"type": "function", "function": function}]
    assert found["problems"] == ["unclosed_call: no </tool_call>"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "it is no JSON"),
        ('"a"', "neither a list nor an object"),
        ("[]", "no list of objects"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": [1]}', "its tools"),
        ('[{"content": "a"}]', "names no role"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "is an image"),
        ('[{"role": "user", "content": 5}]', "content of a message"),
        ('[{"role": "assistant", "tool_calls": [1]}]', "tool_calls"),
        ('[{"role": "system", "content": "a"}]', "begins with a message of the system"),
    ],
)
def test_files_that_are_no_conversation(
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str,
    said: str,
) -> None:
    (tmp_path / "chat.json").write_text(content)
    given = ["--chat", f"messages={tmp_path / 'chat.json'}", "generate.system=b"]
    assert said in refused(checkpoint, capsys, *given)
