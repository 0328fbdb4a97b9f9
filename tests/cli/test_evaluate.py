"""What `loopcoder evaluate` is asked, before anything is loaded."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.cli import asked as asked_module
from loopcoder.cli import evaluate as module
from loopcoder.cli import main as cli
from loopcoder.cli.asked import as_asked
from loopcoder.cli.evaluate import run, table
from loopcoder.config.compose import compose
from loopcoder.config.schema import Config
from loopcoder.errors import InputError
from loopcoder.storage.signals import ASKS, name_of
from tests.cli.run_dirs import checkpoint, run_dir


@pytest.mark.parametrize("number", ASKS)
def test_a_signal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(module, "checkpoints", lambda *_, **__: signal.raise_signal(number))
    assert cli.main(["evaluate", "checkpoint=DIR"]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert name_of(number) in line and "start it again" in line


@pytest.mark.parametrize(
    "arguments", [[], ["checkpoint=a", "checkpoint=b"], ["model.num_loops=2"], ["DIR"]]
)
def test_one_checkpoint_is_named(arguments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        run(arguments)
    assert "checkpoint=DIR" in str(error.value) or "=" in error.value.problems[0].fix


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        (["checkpoint=R", "tasks.limit=3"], "tasks=NAME"),
        (["checkpoint=R", "human_eval.samples=3", "tasks.seed=1"], "tasks=human_eval"),
        (["server=http://127.0.0.1:8000"], "tasks=NAME"),
    ],
)
def test_settings_of_tasks_without_tasks(asked: list[str], fix: str) -> None:
    with pytest.raises(InputError, match="without tasks=") as error:
        run(asked)
    assert error.value.problems[0].fix.startswith(fix)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        run([f"checkpoint={tmp_path}"])


def test_only_what_was_given_differs_from_the_run() -> None:
    trained = compose(["model.num_loops=2", "eval.per_loop=false", "data.seq_length=256"])
    given = ["model.num_loops=4", "eval.sequences_per_domain=9", "train.micro_batch_size=2"]
    config = as_asked(trained, compose(given), given)
    assert (config.model.num_loops, config.eval.sequences_per_domain) == (4, 9)
    assert config.train.micro_batch_size == 2
    assert not config.eval.per_loop and config.data == trained.data
    data = ["data=files", "path=/x", "data.mixture={code:1}"]
    assert as_asked(trained, compose(data), data).data.mixture == {"code": 1.0}


@pytest.mark.parametrize(
    "override", ["optim.lr=3", "model.hidden_size=64", "seed=2", "parallel=tp2"]
)
def test_what_would_change_nothing_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="as its run was trained"):
        as_asked(compose([]), compose([]), [override])


def test_the_table_has_domains_and_loops() -> None:
    result = {"checkpoint": "/c", "step": 3, "num_loops": 2, "precision": "fp32", "corpus": "/d"}
    result |= {"val/loss": 3.0, "val/loss/loop0": 4.0, "val/loss/loop1": 3.0}
    result |= {"val/loss/code": 2.0, "val/bpb/code": 1.5}
    lines = table([result]).splitlines()
    assert "R = 2" in lines[0] and "4.0000 -> 3.0000" in lines[2]
    assert lines[3].split() == ["code", "2.0000", "1.5000"]


def test_languages_and_sources_come_after_the_domains() -> None:
    result = {"checkpoint": "/c", "step": 3, "num_loops": 1, "precision": "fp32", "corpus": "/d"}
    result |= {"val/loss": 3.0, "val/loss/code": 2.0, "val/bpb/code": 1.5, "val/loss/len8": 4.0}
    result |= {"val/loss/language/C++": 2.5, "val/loss/source/0-hf org/data": 1.25}
    rows = [line.split("  ") for line in table([result]).splitlines()[2:]]
    named = [(row[1], next(cell for cell in row[2:] if cell).strip()) for row in rows]
    assert named == [
        ("all", "3.0000"),
        ("code", "2.0000"),
        ("language/C++", "2.5000"),
        ("source/0-hf org/data", "1.2500"),
        ("all at 8 tokens", "4.0000"),
    ]


def test_every_length_has_its_rows_once_with_their_domains() -> None:
    result = {"checkpoint": "/c", "step": 3, "num_loops": 1, "precision": "fp32", "corpus": "/d"}
    loss = 1.0
    for at in ("", "/len64", "/len128"):
        result[f"val/loss{at}"] = (loss := loss + 1)
        for domain in ("text", "code"):
            result[f"val/loss{at}/{domain}"] = (loss := loss + 1)
            result[f"val/bpb{at}/{domain}"] = loss / 2
    rows = [line.split("  ") for line in table([result]).splitlines()[2:]]
    assert [row[1] for row in rows] == [
        f"{name}{at}"
        for at in ("", " at 64 tokens", " at 128 tokens")
        for name in ("all", "text", "code")
    ]
    values = [float(next(cell for cell in row[2:] if cell)) for row in rows]
    assert values == [float(n) for n in range(2, 11)]


def test_one_token_is_no_plural() -> None:
    """A run of then may have had sequences of one token."""
    result = {"checkpoint": "/c", "step": 3, "num_loops": 1, "precision": "fp32", "corpus": "/d"}
    lengths = {"val/loss": 3.0, "val/loss/len1": 4.0, "val/loss/len4096": 2.0}
    text = table([result | lengths])
    assert "all at 1 token  " in text and "all at 4,096 tokens" in text


@pytest.mark.parametrize(
    ("asked", "fix"), [("[64,64]", "[64]"), ("[1]", "null"), ("[999999]", "131072")]
)
def test_lengths_that_say_nothing_are_refused(tmp_path: Path, asked: str, fix: str) -> None:
    folder = run_dir(tmp_path / "run")
    checkpoint(folder, 3, "abc")
    with pytest.raises(InputError, match=r"eval\.lengths") as error:
        run([f"checkpoint={folder}", f"eval.lengths={asked}"])
    assert str(error.value).endswith(fix)


def corpus_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a manifest; opening a corpus gives its folder."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    opened = partial(
        SimpleNamespace,
        tokenizer_hash="tokenizer",
        is_packed=False,
        members=(SimpleNamespace(dir=folder),),
    )
    monkeypatch.setattr(asked_module, "load_corpus", lambda found, _: opened(dir=found))
    return folder


@pytest.mark.parametrize("way", ["LOOPCODER_CACHE", "data.build.cache_dir"])
def test_the_corpus_is_looked_up_in_the_cache_of_today(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's config names the cache of then, which was moved."""
    folder = run_dir(tmp_path / "run", "data=files", "path=/gone", "data.build.cache_dir=/then")
    checkpoint(folder, 3, "abc", corpus_dir="/then/files-abc")
    moved = corpus_at(tmp_path / "now" / "files-abc", monkeypatch)
    looked_at: list[Path] = []

    def evaluated(_found: object, config: Config, corpus: Any) -> list[Any]:
        assert config.data.path == "/gone"
        looked_at.append(corpus.dir)
        return []

    monkeypatch.setattr(module, "evaluate", evaluated)
    arguments = [f"checkpoint={folder}"]
    if way == "LOOPCODER_CACHE":
        monkeypatch.setenv(way, str(moved.parent))
    else:
        arguments.append(f"{way}={moved.parent}")
    assert run(arguments) == 0
    assert looked_at == [moved]


def test_a_corpus_that_is_nowhere_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOOPCODER_CACHE", str(tmp_path / "now"))
    built = run_dir(tmp_path / "built", "data=files", "path=/gone")
    given = run_dir(tmp_path / "given", "data=corpus", "path=/then/files-abc")
    for folder in (built, given):
        checkpoint(folder, 3, "abc", corpus_dir="/then/files-abc")
        with pytest.raises(InputError) as error:
            run([f"checkpoint={folder}"])
        said = str(error.value) + capsys.readouterr().err
        assert "/then/files-abc" in said and str(tmp_path / "now") in said
        assert "data=corpus path=FOLDER where it is now" in said


def trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, packed: int = 0
) -> list[Any]:
    """A run on documents that are gone, whose corpus is there; receives the config and verify of
    what is evaluated."""
    run_dir(folder, "data.mixture={text:3,code:1}", "data.seq_length=32", *overrides)
    checkpoint(folder, 3, "abc", corpus_dir=str(folder.parent / "files-abc"))
    corpus_at(folder.parent / "files-abc", monkeypatch)
    opened: list[Any] = []

    def loaded(found: Path, verify: str) -> Any:
        opened.append(verify)
        manifest: dict[str, Any] = {"domains": {"text": {}, "code": {}}, "files": {}}
        if packed:
            manifest["packed"] = {"seq_length": packed}
        only = SimpleNamespace(dir=found)
        return SimpleNamespace(
            dir=found,
            manifest=manifest,
            tokenizer_hash="tokenizer",
            members=(only,),
            is_packed=bool(packed),
        )

    monkeypatch.setattr(asked_module, "load_corpus", loaded)
    monkeypatch.setattr(module, "evaluate", lambda _, config, corpus: opened.append(config) or [])
    return opened


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("data.verify=size", "size"),
        ("data.verify=hash", "hash"),
        ("data.reader=packed", "packed"),
        ("data.prefetch_steps=2", 2),
        ("data.seq_length=64", 64),
        ("data.isolate_documents=false", False),
        ("data.mixture={code:1}", {"code": 1.0}),
        ("data.mixture.code=2", {"text": 3.0, "code": 2.0}),
        ("data.build.executor.workers=2", None),
    ],
)
def test_a_field_of_the_data_is_set_on_the_corpus_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, value: Any
) -> None:
    opened = trained_on(tmp_path / "run", monkeypatch, "data=files", "path=/gone")
    assert run([f"checkpoint={tmp_path / 'run'}", given]) == 0
    verify, config = opened
    assert verify == ("hash" if given == "data.verify=hash" else "size")
    field = given.partition("=")[0].split(".")[1]
    expected = {"path": "/gone", "name": "files", "seq_length": 32} | {field: value}
    for name, wanted in expected.items():
        assert name == "build" or getattr(config.data, name) == wanted


@pytest.mark.parametrize(
    "given",
    [
        "data.seq_length=64",
        "data.isolate_documents=false",
        "data.mask_document_start=false",
        "eval.lengths=[16]",
    ],
)
def test_what_a_packed_corpus_cannot_be_evaluated_with_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    trained_on(tmp_path / "run", monkeypatch, "data=files", "path=/gone", packed=32)
    assert run([f"checkpoint={tmp_path / 'run'}"]) == 0
    with pytest.raises(InputError, match=given.partition("=")[0]) as refused:
        run([f"checkpoint={tmp_path / 'run'}", given])
    assert "packed" in str(refused.value)


def test_a_field_of_one_stage_is_set_on_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = "data.stages=[{until:64,seq_length:16},{seq_length:64}]"
    opened = trained_on(tmp_path / "run", monkeypatch, "data=files", "path=/gone", stages)
    assert run([f"checkpoint={tmp_path / 'run'}", "data.stages.1.seq_length=128"]) == 0
    assert [stage.seq_length for stage in opened[-1].data.stages] == [16, 128]


def test_a_field_of_the_build_builds_the_documents_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on(tmp_path / "run", monkeypatch, "data=files", f"path={tmp_path}/gone")
    with pytest.raises(InputError, match=f"{tmp_path}/gone"):
        run([f"checkpoint={tmp_path / 'run'}", "data.build.val_fraction=0.5"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("data.seq_length=999999", "data.seq_length=131072"),
        ("data.mixture={}", "text:1"),
        ("data.mixture={math:1}", "not math"),
        ("data.verify=often", "data.verify"),
        ("data.seq_lenght=64", "data.seq_length"),
        ("data.stages.0.seq_length=64", "data.stages"),
    ],
)
def test_fields_that_the_data_of_the_run_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    trained_on(tmp_path / "run", monkeypatch, "data=files", "path=/gone")
    with pytest.raises(InputError) as error:
        run([f"checkpoint={tmp_path / 'run'}", given])
    assert said in str(error.value)


def test_the_table_has_the_sets_of_ones_own() -> None:
    result = {"checkpoint": "/c", "step": 3, "num_loops": 1, "precision": "fp32", "corpus": "/d"}
    result |= {"val/loss": 3.0, "val/loss/code": 2.0, "val/bpb/code": 1.5}
    result |= {"val/exam/loss": 5.0, "val/exam/loss/code": 4.0, "val/exam/bpb/code": 2.5}
    rows = [line.split() for line in table([result]).splitlines()[2:]]
    assert rows == [
        ["all", "3.0000"],
        ["code", "2.0000", "1.5000"],
        ["exam", "5.0000"],
        ["exam:", "code", "4.0000", "2.5000"],
    ]


def test_a_set_of_ones_own_is_added_to_those_of_the_run() -> None:
    trained = compose(["eval.corpora={a:/a}"])
    given = ["eval.corpora.b=/b", "eval.corpora_sequences=3"]
    config = as_asked(trained, compose(given), given)
    assert config.eval.corpora == {"a": "/a", "b": "/b"} and config.eval.corpora_sequences == 3
