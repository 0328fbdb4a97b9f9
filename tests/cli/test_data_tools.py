"""`loopcoder data list`, `clean` and `show`, on a cache that was made up and on a corpus."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from data_pipeline import cache as cache_module
from data_pipeline.cache import cache_size
from data_pipeline.driver import prepare
from loopcoder.cli import main as cli
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus import Corpus, in_use
from loopcoder.errors import InputError
from loopcoder.storage.lock import hold
from tests.cli.run_dirs import checkpoint, run_dir
from tests.data_pipeline.conftest import config, source_folder

__all__ = ["config", "source_folder"]  # fixtures

OLD, NEW, HALF, GONE = (f"{name}-{digit * 16}" for name, digit in zip("abcd", "1234", strict=True))

READ = ("show", "validate", "report")


def made_up(cache: Path, name: str, created: str = "2026-11-01T10:00:00Z") -> Path:
    """A folder with the manifest of a corpus."""
    folder = cache / name
    folder.mkdir(parents=True)
    manifest = {
        "format_version": 2,
        "name": name.partition("-")[0],
        "fingerprint": name.rpartition("-")[2],
        "created": created,
        "domains": {"text": {"train": {"tokens": 1234567, "sequences": 89}, "val": {}}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "text.bin").write_bytes(bytes(3000))
    (cache / f"{name}.lock").write_text("1\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two corpora, an unfinished build, a lock without a corpus, and what is not ours."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    made_up(folder, OLD, "2020-01-01T00:00:00Z")
    made_up(folder, NEW, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    (folder / f".{HALF}.work" / "done" / "parts").mkdir(parents=True)
    (folder / f".{HALF}.work" / "tasks.lock").write_text("")
    (folder / f"{HALF}.lock").write_text("")
    (folder / f"{GONE}.lock").write_text("")
    (folder / "packages").mkdir()
    (folder / "packages" / "linux.deb").write_bytes(bytes(2000))
    (folder / ".hidden.work").mkdir()  # no name of a corpus
    foreign = folder / f".x-{'5' * 16}.work"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    (folder / f"y-{'6' * 16}").mkdir()  # without a manifest
    other = made_up(folder, f"z-{'7' * 16}")
    (other / "manifest.json").write_text('{"fingerprint": "8888888888888888", "files": {}}')
    (folder / "link").symlink_to(folder / OLD)
    return folder


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def data(cache: Path, verb: str, *arguments: str) -> int:
    return cli.main(["data", verb, "--cache", str(cache), *arguments])


def no(holder: str) -> None:
    raise AssertionError(holder)


def test_the_list_has_what_is_ours_and_names_the_rest(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir(Path("runs/mine"), corpus=OLD.rpartition("-")[2])
    checkpoint(run_dir(Path("runs/older")), 3, OLD.rpartition("-")[2], format_version=1)
    with hold(cache / f"{HALF}.lock", no):
        assert data(cache, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["size", "built", "tokens"]
    starts = [i for i, line in enumerate(lines) if line in (OLD, NEW, HALF, GONE)]
    rows = {lines[i]: "".join(lines[i + 1 : j]) for i, j in pairwise([*starts, len(lines) - 3])}
    assert rows.keys() == {OLD, NEW, HALF, GONE}
    assert max(map(len, lines[:-2])) <= 100
    assert "text 1,234,567 (89)" in rows[OLD] and "mine, older" in rows[OLD]
    assert "mine" not in rows[NEW]
    assert "unfinished build, in work now" in rows[HALF]
    assert "lock without a corpus" in rows[GONE]
    beside = next(line for line in lines if line.startswith("besides"))
    for name in ("packages (2.0 kB)", ".hidden.work", "thesis", "link"):
        assert (name in beside) == (name != "thesis")
    assert lines[-1].endswith(f"in {cache}")


def test_the_list_as_json_has_everything(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcde":
        run_dir(Path("runs", name), corpus=OLD.rpartition("-")[2])
    assert data(cache, "list", "--json") == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found.keys() == {OLD, NEW, HALF, GONE}
    assert found[OLD]["runs"] == [f"runs/{name}" for name in "abcde"]
    assert found[OLD]["domains"] == {"text": {"tokens": 1234567, "sequences": 89}}
    assert found[OLD]["bytes"] > 3000 and found[OLD]["path"] == str(cache / OLD)
    assert [found[n]["kind"] for n in (OLD, HALF, GONE)] == ["corpus", "work", "lock"]
    assert [found[n]["is_finished"] for n in (OLD, HALF)] == [True, False]
    assert data(cache, "list") == 0
    assert "  runs: a, b, c and 2 more\n" in capsys.readouterr().out


def test_the_list_of_no_cache_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_without_runs_or_cache_there_is_nothing_to_say(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs").mkdir()
    assert data(cache, "list") == 0
    assert OLD in capsys.readouterr().out.splitlines()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["data", "list"]) == 0
    assert capsys.readouterr().out == f"0 B in {tmp_path}/.cache/loopcoder\n"
    assert cache_size() == 0 < cache_size(cache)


@pytest.mark.parametrize("given", ["environment", "home", "option"])
def test_the_cache_is_the_one_that_corpora_are_built_in(
    cache: Path, given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option: list[str] = []
    monkeypatch.delenv("LOOPCODER_CACHE", raising=False)
    if given == "environment":
        monkeypatch.setenv("LOOPCODER_CACHE", str(cache))
    elif given == "home":
        monkeypatch.setenv("HOME", str(cache.parent / "home"))
        (cache.parent / "home" / ".cache").mkdir(parents=True)
        (cache.parent / "home" / ".cache" / "loopcoder").symlink_to(cache)
    else:
        option = ["--cache", str(cache)]
    assert cli.main(["data", "list", *option]) == 0
    assert f"\n{OLD}\n" in capsys.readouterr().out
    assert cli.main(["data", "clean", "--older-than", "365", *option]) == 0
    assert f"{OLD} (" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["list"], ["clean", "--unfinished", "--yes"]])
def test_the_cache_is_that_of_a_build(
    cache: Path,
    verb: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LOOPCODER_CACHE was taken by builds alone."""
    monkeypatch.setenv("LOOPCODER_CACHE", str(cache))
    assert cli.main(["data", *verb]) == 0
    output = capsys.readouterr().out
    assert OLD in output.splitlines() or "removed" in output, output


def test_what_goes_away_meanwhile_is_left_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(cache_module, "_is_build", gone)
    assert data(cache, "list") == 0
    assert HALF not in capsys.readouterr().out.split("besides")[0]


def test_nothing_goes_without_yes(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(cache)
    assert data(cache, "clean", "--older-than", "0") == 0
    output = capsys.readouterr().out
    assert output.count("would go: ") == 4 and f"{cache / OLD} (3." in output
    assert "kB to free; --yes removes it" in output
    assert names(cache) == before


def test_unfinished_builds_and_leftover_locks_go(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(cache)
    (cache / f".{OLD}.trash" / "train").mkdir(parents=True)  # of a removal that was killed
    (cache / f".{NEW}.work" / "done").mkdir(parents=True)  # data.build.keep_work
    assert data(cache, "clean", "--unfinished", "--yes") == 0
    left = before - {f".{HALF}.work", f"{HALF}.lock", f"{GONE}.lock"}
    assert names(cache) == left | {f".{NEW}.work"}
    assert data(cache, "list") == 0
    assert "kept work of the corpus" in capsys.readouterr().out
    assert data(cache, "clean", NEW, "--yes") == 0
    assert names(cache) == left - {NEW, f"{NEW}.lock"}


def test_a_corpus_goes_with_its_lock_by_name_or_age(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir(Path("runs/mine"), corpus=OLD.rpartition("-")[2])
    before = names(cache)
    assert data(cache, "clean", "--yes", "--older-than=365") == 0
    assert "warning: runs/mine trained on it" in capsys.readouterr().out
    assert names(cache) == before - {OLD, f"{OLD}.lock"}
    assert data(cache, "clean", NEW, "--older-than", "1", "--yes") == 0
    assert names(cache) == before - {OLD, f"{OLD}.lock"}
    assert data(cache, "clean", NEW, "--yes") == 0
    assert names(cache) == before - {OLD, f"{OLD}.lock", NEW, f"{NEW}.lock"}
    assert (cache / "link").is_symlink()


def test_what_is_in_use_stays(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(cache)
    mine = run_dir(Path("runs/mine"), corpus=NEW.rpartition("-")[2])
    with (
        hold(cache / f"{OLD}.lock", no),
        hold(cache / f".{HALF}.work" / "tasks.lock", no, shared=True),
        hold(mine / ".lock", no),
    ):
        assert data(cache, "clean", "--older-than", "0", "--yes") == 0
    output = capsys.readouterr().out
    assert f"stays: {cache / OLD}: a process builds it" in output
    assert f"stays: {cache / f'.{HALF}.work'}: a process builds it" in output
    assert f"stays: {cache / NEW}: runs/mine trains on it now" in output
    assert names(cache) == before - {f"{GONE}.lock"}


def test_what_a_process_elsewhere_reads_stays(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in another folder, an evaluation, `data show`: all hold what they read."""
    before = names(cache)
    with in_use(cache / NEW), in_use(cache / NEW):
        for chosen in ([NEW], ["--older-than", "0"]):
            capsys.readouterr()
            assert data(cache, "clean", *chosen) == 0
            assert f"stays: {cache / NEW}: a process reads it" in capsys.readouterr().out
        assert data(cache, "list") == 0
        assert "in use now" in capsys.readouterr().out
        # one that came after the look at it
        found = next(e for e in cache_module.entries(cache) if e.name == NEW)
        with pytest.raises(cache_module.InUse, match="reads it"):
            cache_module.remove(found)
        assert data(cache, "clean", NEW, "--yes") == 0
    assert names(cache) == before
    assert data(cache, "clean", NEW, "--yes") == 0
    assert names(cache) == before - {NEW, f"{NEW}.lock"}
    with pytest.raises(InputError, match="was removed just before"), in_use(cache / NEW):
        pass


@pytest.mark.parametrize("name", ["packages", ".hidden.work", "y-6666666666666666", "link", "../x"])
def test_what_is_not_ours_has_no_name_here(cache: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    before = names(cache)
    assert data(cache, "clean", name, "--yes") == 3
    assert names(cache) == before and (tmp_path / "x").exists()


def test_a_cache_of_somebody_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "rename", refused)  # root may rename anything
    assert data(cache, "clean", OLD, "--yes") == 3
    error = capsys.readouterr().err
    assert f"cannot remove {cache / OLD}" in error and "fix: " in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["clean"], "nothing was named"),
        (["clean", "--older-than", "soon"], "it takes a number of days"),
        (["clean", "--older-than", "-1"], "it takes a number of days"),
        (
            ["clean", "--force"],
            "its options are --unfinished, --yes, --older-than DAYS, --cache DIR",
        ),
        (["clean", "--cache", "/no/such", "--unfinished"], "there is no such folder"),
        (["list", "sample"], "it takes options only"),
        (["show"], "one finished corpus"),
        (["show", "/no/such"], "there is no folder /no/such"),
        (["show", ".", "--documents", "many"], "it takes a whole number"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", *arguments]) == 3
    error = capsys.readouterr().err
    assert says in error and "fix: " in error


@pytest.mark.parametrize("verb", ["list", "clean", "show"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", verb, "--help"]) == 0
    assert f"usage: loopcoder data {verb}" in capsys.readouterr().out


def test_show_decodes_random_documents(
    config: Callable, source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source_folder / "bell.txt").write_text("\x1b[31mred <b>\n" + "tokens and gates " * 40 + "\n")
    corpus: Corpus = prepare(config(seq_length=1), report=lambda _: None)
    folder = str(corpus.dir)
    capsys.readouterr()
    assert cli.main(["data", "show", folder, "--documents", "100"]) == 0
    everything = capsys.readouterr().out
    sources = [path.read_text() for path in source_folder.rglob("*") if path.is_file()]
    blocks = [block.split("\n", 1)[1] for block in everything.split("\n--- ")[1:]]
    kept = corpus.documents("text", "train") + corpus.documents("code", "train")
    assert len(blocks) == kept
    firsts = {source.splitlines()[0].replace("\x1b", "\\x1b")[:40] for source in sources}
    assert {block.splitlines()[0][:40] for block in blocks} <= firsts
    assert "\x1b" not in everything
    assert "code: " in everything and ", Python" in everything and "from " in everything

    def shown(*arguments: str) -> str:
        assert cli.main(["data", "show", folder, "--domain", "code", *arguments]) == 0
        return capsys.readouterr().out

    assert shown().count("\n--- ") == 3 and "text:" not in shown()
    assert shown("--seed", "1") == shown("--seed", "1") != shown("--seed", "2")
    assert cli.main(["data", "show", folder, "--domain", "math"]) == 3
    assert "fix: --domain text" in capsys.readouterr().err
    # by its name, and by the folder of a run
    trained = run_dir(tmp_path / "trained", corpus=corpus.fingerprint)
    for given in (corpus.dir.name, str(trained)):
        for verb in ("show", "validate", "report"):
            assert cli.main(["data", verb, given, "--cache", str(corpus.dir.parent)]) == 0
            assert verb == "show" or str(corpus.dir) in capsys.readouterr().out
    # the report has documents too, and nothing of them is markup
    page = (corpus.dir / "report.html").read_text()
    assert "Some documents" in page and page.count("<pre>") == 6
    damaged = Path(corpus.prefixes("code", "train")[0] + ".idx")
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert cli.main(["data", "show", folder]) == 3
    assert "cannot be read" in capsys.readouterr().err


def test_a_report_that_cannot_be_written(
    config: Callable[..., DataConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = prepare(config(), report=lambda _: None)
    report = corpus.dir / "report.html"
    before = report.read_bytes()

    def refused(reason: str) -> None:
        assert cli.main(["data", "report", str(corpus.dir)]) == 3
        error = capsys.readouterr().err
        assert f"cannot write {report}" in error and reason in error
        assert "why: " in error and "fix: " in error and "Traceback" not in error

    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        with monkeypatch.context() as patched:

            def refuse(path: Path, _: bytes, number: int = number) -> None:
                raise OSError(number, os.strerror(number), f"{path}.tmp")

            patched.setattr("data_pipeline.report.write_bytes", refuse)
            refused(os.strerror(number))
    in_the_way = report.with_name("report.html.tmp")
    in_the_way.mkdir()
    refused(os.strerror(errno.EISDIR))
    assert report.read_bytes() == before


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"format_version": 2, "fingerprint": 3}', "gone", "wrong"]
)
def test_a_damaged_corpus_is_named_by_every_verb(
    config: Callable[..., DataConfig],
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A manifest that is torn, of wrong kinds, or whose files are gone; the list names it too."""
    corpus = prepare(config(), report=lambda line: None)
    culprit = manifest = corpus.dir / "manifest.json"
    content = json.loads(manifest.read_text())
    if damage == "gone":
        culprit = corpus.dir / "val" / "code.bin"
        culprit.unlink()
    elif damage == "wrong":
        content["domains"]["text"]["train"]["sequences"] = content["domains"]["code"] = "many"
        manifest.write_text(json.dumps(content))
    else:
        manifest.write_text(damage)
    given = ["data=corpus", f"path={corpus.dir}"]
    verbs = (["train", *given], ["doctor", *given], *(["data", v, str(corpus.dir)] for v in READ))
    for verb in verbs:
        assert cli.main(verb) == 3, verb
        error = capsys.readouterr().err
        assert str(culprit) in error and "why: " in error and "fix: " in error, error
    for flag in ([], ["--json"]):
        assert cli.main(["data", "list", "--cache", str(corpus.dir.parent), *flag]) == 0
        said = capsys.readouterr()
        assert f"cannot be used: {culprit}" in said.err or "cannot be used: cannot" in said.err
        assert str(culprit) in said.err and "fix: " in said.err


def test_a_damaged_record_of_a_run_is_named(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = run_dir(Path("runs/torn"), corpus=OLD.rpartition("-")[2])
    saved = run_dir(Path("runs/saved"), saved=3, corpus=OLD.rpartition("-")[2])
    for folder in (torn, saved):
        (folder / "corpus.json").write_text('{"dir": ')
    assert data(cache, "show", str(torn)) == 3
    error = capsys.readouterr().err
    assert f"{torn}/corpus.json cannot be read" in error and f"fix: rm -r {torn}/corpus" in error
    assert data(cache, "list") == 0
    said = capsys.readouterr()
    assert f"{torn}/corpus.json cannot be read" in said.err
    assert f"warning: {saved}/corpus.json cannot be read" in said.err
    assert "  runs: saved" in said.out  # by its checkpoint
