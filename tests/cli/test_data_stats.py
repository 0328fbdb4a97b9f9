"""`loopcoder data stats`: a corpus by its manifest, a run by its ledger and its position."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.cli import main as cli
from loopcoder.config.compose import changed, compose, save_config
from loopcoder.data.blend import blend_at
from loopcoder.data.corpus import Corpus
from loopcoder.data.ledger import Ledger
from loopcoder.data.sampler import Mixture, Position, advance, position_at
from tests.checkpoint.states import state_at
from tests.cli.run_dirs import run_dir
from tests.cli.test_data_inspect import LENGTH, corpus, words

__all__ = ["corpus"]  # fixture


def stats(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert cli.main(["data", "stats", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    """The words of every line that is printed."""
    capsys.readouterr()
    assert cli.main(["data", "stats", *map(str, arguments)]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def ledger_at(corpus: Corpus, domains: dict[str, int], since: Position | None = None) -> Ledger:
    """A ledger of so many tokens of each domain, spread over its labels."""
    tokens = np.zeros(len(corpus.labels), dtype=np.int64)
    for domain, count in domains.items():
        mine = [i for i, label in enumerate(corpus.labels) if label.domain == domain]
        parts = np.array_split(np.arange(count), len(mine))
        tokens[mine] = [len(part) for part in parts]
    begun = Ledger() if since is None else Ledger.from_here(since)
    return begun.plus(corpus.labels, tokens)


def save(folder: Path, corpus: Corpus, position: Position, ledger: Ledger | None) -> Path:
    path = layout.step_folder(folder, position.step)
    path.mkdir(parents=True)
    state = state_at(
        position.step,
        position=position,
        ledger=ledger,
        corpus=corpus.fingerprint,
        corpus_dir=str(corpus.dir),
    )
    (path / "state.json").write_text(json.dumps(state.to_json()))
    (path / "manifest.json").write_text('{"files": {}}')
    (path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    return path


@pytest.fixture
def stages(corpus: Corpus) -> list[str]:
    """The overrides of a run of 10 steps: two half and half, then code alone, then 3 : 1."""
    until = [8 * LENGTH * 2, 8 * LENGTH * 5]
    return words(
        corpus,
        "data.reader=packed",
        "train.max_steps=10",
        f"data.stages=[{{until:{until[0]}}},{{until:{until[1]},mixture:{{code:1}}}},"
        "{mixture:{code:3,text:1}}]",
    )


def domains_of(overrides: list[str], steps: int) -> tuple[Position, dict[str, int]]:
    """Where a run stands after some steps, and its tokens, step by step."""
    config, position = compose(overrides), Position()
    found = {"text": 0, "code": 0}
    for _ in range(steps):
        after, size = advance(config, position)
        mixture = Mixture(config.stages[position.stage].mixture)
        for sample in range(position.sample, position.sample + size):
            found[mixture.locate(sample)[0]] += LENGTH
        position = after
    return position, found


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_run_is_its_ledger(
    corpus: Corpus,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    stages: list[str],
    steps: int,
) -> None:
    folder, config = run_dir(tmp_path / "run"), compose(stages)
    save_config(config, folder / "config.yaml")
    position, tokens = domains_of(stages, steps)
    ledger = ledger_at(corpus, tokens)
    saved = save(folder, corpus, position, ledger)
    found = stats(capsys, folder)
    assert stats(capsys, saved)["labels"] == found["labels"]
    entries = [(e.domain, e.language, e.source, e.tokens) for e in ledger.entries]
    assert [tuple(row.values()) for row in found["labels"]] == entries
    assert (found["tokens"], found["step"], found["max_steps"]) == (position.tokens, steps, 10)
    end = position_at(config, position, 10)
    for domain, row in found["domains"].items():
        assert row["tokens"] == tokens[domain]
        assert row["wanted"] == pytest.approx(tokens[domain] / position.tokens)
        shard = corpus.tokens(domain, "train")
        assert row["epochs"] == pytest.approx(tokens[domain] / ((shard - 1) // LENGTH * LENGTH))
        assert row["epochs_at_end"] == blend_at(config, corpus, end).epochs(end.sample)[domain]
    lines = printed(capsys, folder)
    for domain, count in tokens.items():
        share = f"{count / position.tokens:.1%}"
        assert not count or [domain, f"{count:,}", share, share] in [row[:4] for row in lines]


def test_what_a_run_left_out_counts_for_its_epochs_alone(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    skip = ["train.max_steps=10", "data.reader=packed", "data.skip=[{step:3,steps:2}]"]
    given, folder = words(corpus, *skip), run_dir(tmp_path / "run")
    save_config(compose(given), folder / "config.yaml")
    position = position_at(compose(given), Position(), 4)
    tokens = dict.fromkeys(("text", "code"), position.tokens // 2)
    save(folder, corpus, position, ledger_at(corpus, tokens))
    found = stats(capsys, folder)
    assert [skipped["samples"] for skipped in found["skipped"]] == [16]
    for row in found["domains"].values():
        assert (row["tokens"], row["wanted"]) == (16 * LENGTH, 0.5)
    sequences = (corpus.tokens("text", "train") - 1) // LENGTH
    assert found["domains"]["text"]["epochs"] == pytest.approx((16 + 8) / sequences)
    assert printed(capsys, folder)[-1][:5] == ["left", "out", "before", "step", "3:"]


def test_a_run_that_an_earlier_version_began(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path, stages: list[str]
) -> None:
    folder = run_dir(tmp_path / "run")
    save_config(compose(stages), folder / "config.yaml")
    position, tokens = domains_of(stages, 1)
    save(folder, corpus, position, None)
    found = stats(capsys, folder)
    assert not found["has_ledger"]
    assert {d: row["tokens"] for d, row in found["domains"].items()} == tokens
    assert printed(capsys, folder)[-1][6:9] == ["kept", "no", "ledger:"]
    later, more = domains_of(stages, 6)
    rest = {domain: more[domain] - tokens[domain] for domain in tokens}
    save(folder, corpus, later, ledger_at(corpus, rest, since=position))
    found = stats(capsys, folder)
    assert (found["since_step"], found["since_tokens"]) == (1, position.tokens)
    assert sum(row["tokens"] for row in found["labels"]) == later.tokens - position.tokens
    assert printed(capsys, folder)[-1][:4] == ["counted", "from", "step", "1"]


def test_a_ledger_beyond_the_newest_checkpoint(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path, stages: list[str]
) -> None:
    folder = run_dir(tmp_path / "run")
    save_config(compose(stages), folder / "config.yaml")
    record = {"dir": str(corpus.dir), "fingerprint": corpus.fingerprint}
    (folder / "corpus.json").write_text(json.dumps(record))
    position, tokens = domains_of(stages, 3)
    content = ledger_at(corpus, tokens).as_file(position)
    (folder / "ledger.json").write_text(json.dumps(content))
    found = stats(capsys, folder)
    assert found["step"] == 3 and found["tokens"] == position.tokens
    assert {d: row["tokens"] for d, row in found["domains"].items()} == tokens
    first, of_first = domains_of(stages, 1)
    save(folder, corpus, first, ledger_at(corpus, of_first))
    assert stats(capsys, folder)["step"] == 3
    (folder / "ledger.json").write_text(json.dumps(content)[:-20])
    assert cli.main(["data", "stats", str(folder)]) == 3
    assert "ledger.json cannot be read" in capsys.readouterr().err
    for damage in ("step", "entries"):
        (folder / "ledger.json").write_text(json.dumps(content | {damage: "x"}))
        assert cli.main(["data", "stats", str(folder)]) == 3
        assert "fix: rm " in capsys.readouterr().err
    del content["step"]
    (folder / "ledger.json").write_text(json.dumps(content))
    assert cli.main(["data", "stats", str(folder)]) == 3
    said = capsys.readouterr().err
    assert "cannot be read: it has no 'step'" in said
    assert f"data stats {folder}/checkpoints/step_00000001 has that" in said


def test_a_corpus_is_its_manifest(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    found = stats(capsys, corpus.dir)
    assert stats(capsys, corpus.dir.name, "--cache", corpus.dir.parent) == found
    for domain in corpus.domains:
        row = found["domains"][domain]
        assert row["tokens"] == corpus.tokens(domain, "train")
        assert row["documents"] == corpus.documents(domain, "train")
        assert row["held_out_tokens"] == corpus.tokens(domain, "val")
        assert row["sequences"] == corpus.manifest["domains"][domain]["train"]["sequences"]
    total = sum(corpus.tokens(domain, "train") for domain in corpus.domains)
    assert sum(found["languages"].values()) == sum(found["sources"].values()) == total
    assert sum(row["tokens"] for row in found["labels"]) == total
    assert "epochs" not in found
    (text,) = [count for name, count in found["sources"].items() if name == "0-files"]
    assert text == corpus.tokens("text", "train")
    assert ["0-files", f"{text:,}", f"{text / total:.1%}"] in printed(capsys, corpus.dir)


def test_epochs_that_a_run_would_take(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], stages: list[str]
) -> None:
    given = [o for o in stages if not o.startswith(("data=", "path="))]
    config = compose(stages)
    end = position_at(config, Position(), 10)
    found = stats(capsys, corpus.dir, *given)["epochs"]
    assert (found["steps"], found["tokens"]) == (10, end.tokens)
    assert found["domains"] == blend_at(config, corpus, end).epochs(end.sample)
    longer = stats(capsys, corpus.dir, *given, "train.max_steps=30")["epochs"]["domains"]
    assert longer["text"] > found["domains"]["text"]
    epochs = f"{found['domains']['text']:.3g}"
    row = next(row for row in printed(capsys, corpus.dir, *given) if row[:1] == ["text"])
    assert row[-1] == epochs


@pytest.mark.parametrize(
    ("arguments", "says", "fix"),
    [
        ([], "takes one run, checkpoint or finished corpus", "data stats RUN"),
        (["a", "b"], "takes one run", "data stats RUN"),
        (["train.max_steps=3"], "takes one run", "data stats RUN"),
        (["nowhere"], "no corpus nowhere", "loopcoder data list"),
        (["run"], "neither a checkpoint nor a ledger.json", "loopcoder data stats CORPUS"),
        (["run", "seed=3"], "configuration that it was trained with", "data stats run"),
        (["--table", "run"], "its options are", "data stats"),
        (["CORPUS", "trian.max_steps=3"], "trian", "train.max_steps"),
        (["CORPUS", "data.mixture={prose:1}"], "prose", "mixture"),
        (["CORPUS", "data.seq_length=999999999"], "max_position_embeddings", "seq_length="),
    ],
)
def test_what_cannot_be_counted(
    corpus: Corpus,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
    fix: str,
) -> None:
    run_dir(Path("run"))
    given = [str(corpus.dir) if a == "CORPUS" else a for a in arguments]
    assert cli.main(["data", "stats", *given]) == 3
    said = capsys.readouterr().err
    assert says in said and fix in said.partition("fix: ")[2], said


def test_a_run_whose_corpus_is_gone_keeps_its_ledger(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], tmp_path: Path, stages: list[str]
) -> None:
    folder = run_dir(tmp_path / "run")
    config = changed(compose(stages), ["path=/gone"])
    save_config(config, folder / "config.yaml")
    position, tokens = domains_of(stages, 2)
    saved = save(folder, corpus, position, ledger_at(corpus, tokens))
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"corpus_dir": "/gone"}))
    found = stats(capsys, folder)
    assert found["corpus"] is None and found["domains"]["text"]["epochs"] is None
    assert {d: row["tokens"] for d, row in found["domains"].items()} == tokens
    assert "so that epochs are not known" in " ".join(printed(capsys, folder)[1])
    damaged = shutil.copytree(corpus.dir, tmp_path / "damaged")
    next((damaged / "val").glob("*.bin")).unlink()
    (saved / "state.json").write_text(json.dumps(state | {"corpus_dir": str(damaged)}))
    found = stats(capsys, folder)
    assert found["corpus"] is None and found["domains"]["text"]["tokens"] == tokens["text"]
    assert "val/" in " ".join(printed(capsys, folder)[1])
