"""A checkpoint in this process: `loopcoder.load` and `loopcoder evaluate`, without a launcher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import loopcoder
from data_pipeline.driver import prepare
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.pinned import companions, record_corpus
from loopcoder.cli import main as cli
from loopcoder.config.build import SourceConfig
from loopcoder.config.compose import save_config
from loopcoder.config.data import DataConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError
from tests.checkpoint.states import state_at
from tests.configs import data_config, small_config
from tests.data_pipeline.conftest import PLAIN

TEXT = "n = 3\nloop = gate\n"


@dataclass(frozen=True)
class Saved:
    """A run of two checkpoints, and the validation of the second before it was saved."""

    run_dir: Path
    config: Config
    corpus: Corpus
    values: dict[str, float]

    def checkpoint(self, step: int) -> Path:
        return layout.step_folder(self.run_dir, step)


@pytest.fixture(scope="module")
def saved(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    from loopcoder import loaded
    from loopcoder.checkpoint.save import Saver
    from loopcoder.model.vocabulary import padded_vocabulary
    from loopcoder.train.state import build_state
    from loopcoder.train.validation import Evaluator

    folder = tmp_path_factory.mktemp("loaded")
    corpus = prepare(documents(folder), report=lambda _: None)
    run_dir, config = folder / "run", small_config()
    mixture = {"text": 1.0, "code": 3.0}
    config = replace(config, data=replace(config.data, seq_length=16, mixture=mixture))
    vocab_size = padded_vocabulary(config.model, corpus.vocab_size, corpus.tokenizer_path)
    state = build_state(config, ranks, vocab_size)
    run_dir.mkdir()
    save_config(config, run_dir / "config.yaml")
    record_corpus(corpus, run_dir)
    saver = Saver(config, run_dir, lambda *_, **__: None, companions(corpus.dir))
    about = dict(
        vocab_size=vocab_size, tokenizer_hash=corpus.tokenizer_hash, corpus=corpus.fingerprint,
        corpus_dir=str(corpus.dir), tokenizer_path=str(corpus.tokenizer_path),
    )  # fmt: skip
    for step in (3, 6):
        with torch.no_grad():
            for parameter in state.network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        saver.save(state.network, state.ddp, None, state_at(step, **about))
    (run_dir / "metrics.jsonl").write_text('{"step": 3, "loss": 6.5}\n{"step": 6, "loss": 6.25}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded, "_alone", lambda: ranks)  # the world of the tests
        yield Saved(run_dir, config, corpus, Evaluator(config, corpus)(state))


def documents(folder: Path) -> DataConfig:
    """Write a folder of text and code, and return what makes a corpus of it."""
    source = folder / "source"
    source.mkdir()
    for i in range(40):
        (source / f"note{i}.txt").write_text(f"{i} " + "loop gate key value " * 20)
        (source / f"program{i}.py").write_text(f"n = {i}\n" + "loop = gate\n" * 20)
    return data_config(
        name="files", seq_length=16, mixture={"text": 1, "code": 1}, val_fraction=0.25,
        sources=[SourceConfig(kind="files", path=str(source))], tokenizer_vocab_size=600,
        cache_dir=str(folder / "cache"), **PLAIN,
    )  # fmt: skip


@pytest.fixture
def emptied(saved: Saved) -> Iterator[None]:
    """The cache without the corpus: the checkpoint has its tokenizer."""
    away = saved.corpus.dir.rename(saved.corpus.dir.with_name("away"))
    yield
    away.rename(saved.corpus.dir)


def results(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_run_its_folder_of_checkpoints_and_each_of_them_are_evaluated(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (saved.run_dir, saved.run_dir / "checkpoints", saved.checkpoint(6)):
        (found,) = results(capsys, f"checkpoint={path}")
        assert found["step"] == 6
        for key, value in saved.values.items():
            assert found[key] == pytest.approx(value, rel=1e-6), key
    keys = {"val/loss/code/loop0", "val/loss/text", "val/bpb/text", "val/bpb/code", "val/loss"}
    assert keys <= saved.values.keys()
    first, last = results(capsys, f"checkpoint={saved.run_dir}", "--all")
    (alone,) = results(capsys, f"checkpoint={saved.checkpoint(3)}")
    assert (first["step"], last["step"]) == (3, 6) and first == alone
    assert first["val/loss"] != last["val/loss"]
    assert cli.main(["evaluate", f"checkpoint={saved.run_dir}"]) == 0
    assert f"{saved.values['val/loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("loops", [1, 3])
def test_another_number_of_loops_begins_as_the_run_did(
    saved: Saved, capsys: pytest.CaptureFixture[str], loops: int
) -> None:
    (found,) = results(capsys, f"checkpoint={saved.run_dir}", f"model.num_loops={loops}")
    assert found["num_loops"] == loops and f"val/loss/loop{loops}" not in found
    if loops == 1:
        assert found["val/loss"] == pytest.approx(saved.values["val/loss/loop0"], rel=1e-6)
        return
    for loop in range(2):
        ours = saved.values[f"val/loss/loop{loop}"]
        assert found[f"val/loss/loop{loop}"] == pytest.approx(ours, rel=1e-6)
    assert found["val/loss"] == found["val/loss/loop2"] != found["val/loss/loop1"]


def test_other_data_is_read_in_the_tokens_of_the_checkpoint(
    saved: Saved, emptied: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for i in range(30):
        (other / f"x{i}.py").write_text(f"def other_{i}():\n    return {i}\n" * 9)
    asked = ["data=files", f"path={other}", "data.mixture={code:1}", "data.seq_length=16"]
    asked += ["data.build.filters.enabled=false", "data.build.near_dedup.enabled=false",
              "data.build.fim.rate=0",
              "data.build.decontaminate.benchmarks=[]", f"data.build.cache_dir={tmp_path}/cache",
              "data.build.val_fraction=0.3", "eval.sequences_per_domain=4"]  # fmt: skip
    (found,) = results(capsys, f"checkpoint={saved.run_dir}", *asked)
    assert {"val/loss/code", "val/bpb/code"} <= found.keys()
    assert "val/loss/text" not in found and math.isfinite(found["val/loss"])


@pytest.mark.parametrize("where", ["run", "checkpoints/step_00000003", "checkpoints/step_00000006"])
def test_what_decodes_lies_in_the_run_and_in_each_checkpoint(saved: Saved, where: str) -> None:
    folder = saved.run_dir if where == "run" else saved.run_dir / where
    for file in companions(saved.corpus.dir):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    if where != "run":
        assert not list(layout.faults(layout.find(folder), "hash"))
        assert "tokenizer.json" in json.loads((folder / "manifest.json").read_text())["files"]


def test_a_model_for_notebooks(saved: Saved, emptied: None) -> None:
    run = loopcoder.load(saved.run_dir)
    assert (run.step, run.run_dir, run.config.model.num_loops) == (6, saved.run_dir, 2)
    assert [line["loss"] for line in run.metrics()] == [6.5, 6.25] and run.events() == []
    ids = run.tokenizer.encode(TEXT).ids
    assert run.tokenizer.decode(ids) == TEXT
    logits, every = run.logits(TEXT), run.logits(ids, every_loop=True)
    assert logits.shape == (len(ids), run.tokenizer.get_vocab_size())
    assert torch.equal(every[-1], logits) and every.shape[0] == 2
    loss = run.loss(TEXT)
    assert loss.shape == (2, len(ids) - 1)
    bits = float(loss[-1].sum()) / math.log(2) / len(TEXT.encode())
    assert run.bits_per_byte(TEXT) == pytest.approx(bits, rel=1e-6)


def test_a_chat(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the template of the weights, which is ChatML without tools here; then in another one."""
    from loopcoder.chat.calls import ToolCall
    from loopcoder.chat.templates import built_in
    from loopcoder.infer.chat_answer import ChatAnswer
    from loopcoder.infer.engine import Engine
    from loopcoder.infer.request import Answer

    run = loopcoder.load(saved.run_dir)
    text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    settings = {"max_tokens": 8, "temperature": 1.0, "seed": 5}
    answer = run.chat("Why?", **settings)
    plain = run.generate(text, **settings)
    assert answer == ChatAnswer(
        plain.text, text=plain.text, finish=plain.finish, stopped_by=plain.stopped_by
    )
    assert run.chat([{"role": "user", "content": "Why?"}], **settings) == answer
    tools = [{"type": "function", "function": {"name": "look"}}]
    for wrong, said in (
        (lambda: run.chat("Why?", tools=tools), "no place for tools"),
        (lambda: run.chat("Why?", chat_template_kwargs={"self": 1}), "self for the chat template"),
        (lambda: run.chat("a\ud83d"), "surrogates"),
        (lambda: run.chat([{"content": "a"}]), "names no role"),
        (lambda: run.chat("Why?<|im_end|>"), "spells <|im_end|>"),
        (lambda: run.chat("Why?", max_tokens=0), "max_tokens=0"),
    ):
        with pytest.raises(InputError, match=said):
            wrong()

    run._generator("auto", "auto").prompts._speak(built_in("hermes"))
    said = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    asked = []

    def told(self: Engine, requests: list[Any]) -> list[Answer]:
        asked.append(run.tokenizer.decode(requests[0].ids))
        return [Answer(said, (), "stop")]

    monkeypatch.setattr(Engine, "generate", told)
    assert run.chat("Why?", tools=tools).tool_calls == (ToolCall("look", {}),)
    assert "<tools>" in asked[0]
    assert run.chat("Why?").content == said


def test_answers_are_those_of_the_full_pass(saved: Saved) -> None:
    """Greedy, one and several, whole and piece by piece; drawn ones follow their seed."""
    run = loopcoder.load(saved.run_dir)
    ids = list(run.tokenizer.encode(TEXT).ids)
    wanted = []
    for _ in range(12):
        wanted.append(int(run.logits([*ids, *wanted])[-1].argmax()))
    answer = run.generate(TEXT, max_tokens=12, ignore_end=True, logprobs=1)
    assert (answer.ids, answer.finish) == (wanted, "length")
    assert answer.text == run.tokenizer.decode(wanted)
    assert answer.tokens[0].top[0][0] == wanted[0]
    settings = dict(max_tokens=12, temperature=1.0, top_p=0.9, seed=3)
    alone = [run.generate(text, **settings) for text in (TEXT, ids[:3], "")]
    assert run.generate([TEXT, ids[:3], []], **settings) == alone
    assert run.generate(TEXT, **settings, kernels="stock", cuda_graphs="off") == alone[0]
    pieces = list(run.generate(TEXT, **settings, stream=True))
    assert "".join(piece.text for piece in pieces) == alone[0].text
    if answer.text:  # special tokens alone are none
        stop = answer.text[len(answer.text) // 2]
        short = run.generate(TEXT, max_tokens=12, ignore_end=True, stop=stop)
        assert short.text == answer.text[: answer.text.index(stop)] and short.stopped_by == stop
    most = run.config.model.max_position_embeddings
    for wrong, said in (
        (lambda: run.generate(TEXT, max_tokens=most), f"both together may be {most:,}"),
        (lambda: run.generate([TEXT, ""], stream=True), "one prompt"),
        (lambda: run.generate([run.vocabulary]), "token id"),
        (lambda: run.generate(TEXT, temperature=-1), "temperature=-1"),
        (lambda: run.generate(TEXT, kernels="cuda"), "kernels=cuda"),
        (lambda: run.generate(TEXT, kernels="fast"), "must be one of"),
        (lambda: run.generate(TEXT, temperature="warm", top_p=0.0), r"(?s)temperature.*top_p"),
        (lambda: run.generate(TEXT, max_tokens=0), "max_tokens=0"),
        (lambda: run.generate(TEXT, max_tokens=2.5), "whole number"),
        (lambda: run.generate(TEXT, top_k=-1), "top_k=-1"),
        (lambda: run.generate(TEXT, min_p=float("nan")), "min_p"),
        (lambda: run.generate(TEXT, seed=-1), "seed=-1"),
        (lambda: run.generate(TEXT, stop=[3]), "stop"),
        (lambda: run.generate(TEXT, stop=None), "stop"),
        (lambda: run.generate(TEXT, logprobs=-1), "logprobs=-1"),
        (lambda: run.generate(TEXT.encode()), "bytes for a prompt"),
        (lambda: run.generate(None), "NoneType for a prompt"),
        (lambda: run.generate([TEXT, None]), "NoneType for a prompt"),
        (lambda: run.generate([1.5]), "float for a prompt"),
        (lambda: run.generate(torch.tensor(ids)), "Tensor for a prompt"),
        (lambda: run.generate("a\ud83d"), "surrogates"),
    ):
        with pytest.raises(InputError, match=said):
            wrong()
    assert run.generate(TEXT, max_tokens=12, ignore_end=True, logprobs=1) == answer


@pytest.mark.parametrize("loops", [1, 3])
def test_a_model_with_other_loops(saved: Saved, loops: int) -> None:
    run = loopcoder.load(saved.checkpoint(3), num_loops=loops)
    assert (run.step, run.config.model.num_loops, run.trained.model.num_loops) == (3, loops, 2)
    two, other = loopcoder.load(saved.checkpoint(3)).loss(TEXT), run.loss(TEXT)
    assert len(other) == loops and torch.equal(other[0], two[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: loopcoder.load(s.corpus.dir), "no complete checkpoint"),
        (lambda s: loopcoder.load(s.run_dir, num_loops=0), "num_loops=0"),
        (lambda s: loopcoder.load(s.run_dir).loss("")[0], "0 tokens"),
    ],
)
def test_mistakes_have_a_fix(saved: Saved, call: Callable[[Saved], Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        call(saved)
    assert all(problem.fix for problem in caught.value.problems)


def test_a_later_stage_than_the_data_have_takes_their_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with other documents, which have one stage, of a run in its third."""
    from loopcoder import loaded
    from loopcoder.data.sampler import Position
    from loopcoder.train import state

    thetas: list[float] = []
    network = SimpleNamespace(set_rope_theta=thetas.append, eval=lambda: None)
    monkeypatch.setattr(state, "build_network", lambda *_: (network, None))
    monkeypatch.setattr(loaded, "load_weights", lambda *_: None)
    saved: Any = SimpleNamespace(state=lambda: state_at(9, position=Position(step=9, stage=2)))
    ranks: Any = SimpleNamespace(device=torch.device("cpu"))
    config = small_config()
    loaded._state(saved, config, ranks)
    assert thetas == [config.stages[0].rope_theta]
