"""`loopcoder runs`: what became of runs, from their folders alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from loopcoder.cli import main as cli
from loopcoder.cli.run_folders import corpus_of, differences, find_runs, labels, read_run
from loopcoder.config.compose import compose
from loopcoder.storage.lock import hold
from tests.cli.run_dirs import checkpoint, run_dir

OLD_CONFIG = Path(__file__).parents[1] / "config" / "config_3b7e4bd.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert cli.main(["runs", *arguments, "--json"]) == 0
    return {Path(entry["run"]).name: entry for entry in json.loads(capsys.readouterr().out)}


def test_the_state_of_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_dir(Path("runs/finished"), losses=10, saved=10)
    run_dir(Path("runs/stopped"), losses=7, saved=5)
    run_dir(Path("runs/never"), losses=3)
    working = run_dir(Path("runs/working"), losses=4, saved=2)
    os.utime(working / "metrics.jsonl", (2e9, 2e9))

    def no(holder: str) -> None:
        raise AssertionError(holder)

    with hold(working / ".lock", no):
        found = listed(capsys)
        assert cli.main(["runs"]) == 0
    states = {name: entry["state"] for name, entry in found.items()}
    assert states == {
        "finished": "finished",
        "stopped": "stopped",
        "never": "never saved",
        "working": "training",
    }
    stopped = found["stopped"]
    assert (stopped["step"], stopped["saved_step"], stopped["max_steps"]) == (7, 5, 10)
    assert stopped["tokens"] == 32 * 7 and stopped["loss"] == pytest.approx(4.3)
    assert stopped["val/loss"] == pytest.approx(4.48) and stopped["num_loops"] == 2
    assert stopped["bytes"] > stopped["checkpoint_bytes"] > 5000
    assert found["never"]["saved_step"] is None and found["never"]["checkpoint_bytes"] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["state", "step"] and len(lines) == 1 + 2 * 4
    assert lines[-2] == "runs/working" and "2033-05-18" in lines[-1]


def test_why_a_run_ended_and_what_its_time_went_into(capsys: pytest.CaptureFixture[str]) -> None:
    def written(name: str, events: list[dict[str, Any]], *, finished: bool = False) -> None:
        folder = run_dir(Path("runs", name), losses=10 if finished else 7, saved=5)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 7, "goodput": 0.625}) + "\n")
        (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        marks = [(1000, 0, {"start": 8.0}), (1008, 5, {"start": 8.0, "steps": 8.0})]
        fields = {"session": 0, "from_step": 0, "anew": False}
        lines = [fields | {"time": t, "step": s, "seconds": spent} for t, s, spent in marks]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "time.jsonl").write_text(text)

    began = {"kind": "run_started"}
    stopped = {"kind": "run_stopped", "step": 7, "why": "rank 3 (node7) is gone", "exit_code": 75}
    written("stopped", [began, {"kind": "hang"}, stopped, {"kind": "note"}])
    written("killed", [began, stopped, began, {"kind": "checkpoint_saved"}])
    written("finished", [began, stopped, began, {"kind": "run_done"}], finished=True)
    written("old", [began, {"kind": "checkpoint_saved"}])
    Path("runs/old/time.jsonl").unlink()  # of a version that did not say why it stopped
    found = listed(capsys)
    assert {name: entry["stopped"] for name, entry in found.items()} == {
        "stopped": "rank 3 (node7) is gone (exit code 75)",
        "killed": "killed, or its machine failed: it left no word",
        "finished": None,
        "old": None,
    }
    assert found["stopped"]["goodput"] == 0.625
    assert found["stopped"]["seconds"]["steps"] == found["stopped"]["seconds"]["start"] == 8
    assert cli.main(["runs", "runs/stopped"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[6] == "goodput" and lines[2].split()[6] == "62%"
    assert lines[3] == "  ended: rank 3 (node7) is gone (exit code 75)"


def test_runs_are_found_in_runs_sweeps_and_folders_of_them(tmp_path: Path) -> None:
    one = run_dir(Path("runs/one"), losses=1, saved=1)
    point = run_dir(Path("runs/sweeps/abc/00_loops_1"), losses=1)
    Path("runs/sweeps/abc/ledger.jsonl").write_text("")
    other = run_dir(Path("else/where"))
    Path("runs/circle").symlink_to("circle")
    Path("runs/gone").symlink_to("nowhere")
    assert find_runs([Path("runs")])[0] == [one, point]
    assert find_runs([Path("runs/sweeps/abc")])[0] == [point]
    assert find_runs([one, Path("else"), tmp_path / "runs"])[0] == [one, other, tmp_path / point]


def test_old_and_damaged_folders_are_listed_or_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = Path("runs/plt_tiny-r2-b9c6bd6e4d")
    old.mkdir(parents=True)
    shutil.copy(OLD_CONFIG, old / "config.yaml")
    (old / "metrics.jsonl").write_text('{"step": 3, "loss": "nan"}\n{"step": 4, "lo')
    checkpoint(old, 2, "0123", format_version=1)
    run_dir(Path("runs/torn"), losses=2)
    with Path("runs/torn/metrics.jsonl").open("ab") as file:
        file.write(b"\xff\x00\n{}\n[]\n")
    Path("runs/empty/checkpoints").mkdir(parents=True)
    for name, content in {"no_yaml": "a: [", "no_config": "model: 3", "bytes": "\udcff"}.items():
        (tmp_path / "runs" / name).mkdir()
        Path("runs", name, "config.yaml").write_text(content, errors="surrogateescape")
    assert cli.main(["runs", "--json"]) == 0
    captured = capsys.readouterr()
    found = {Path(entry["run"]).name: entry for entry in json.loads(captured.out)}
    assert (found[old.name]["step"], found[old.name]["loss"]) == (3, "nan")
    assert found[old.name]["num_loops"] == 2 and found[old.name]["state"] == "stopped"
    assert found["torn"]["step"] == 2
    assert found["empty"]["state"] == "never saved" and found["empty"]["max_steps"] is None
    said = captured.err.splitlines()
    assert [line.split(": ")[:2] for line in said] == [
        ["left out", "runs/bytes"],
        ["left out", "runs/no_config"],
        ["left out", "runs/no_yaml"],
    ]
    assert cli.main(["runs"]) == 0
    assert cli.main(["runs", "--table", "t"]) == 0
    assert "left out: runs/empty: it has no config.yaml" in capsys.readouterr().err


def test_runs_say_in_what_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    run_dir(Path("runs/a"), "seed=1", "logging.interval=3")
    run_dir(Path("runs/b"), "seed=2", "model.num_loops=3")
    found = listed(capsys)
    assert found["a"]["differs"] == {"model.num_loops": 2, "seed": 1}
    assert found["b"]["differs"] == {"model.num_loops": 3, "seed": 2}
    assert cli.main(["runs"]) == 0
    assert "runs/b  model.num_loops=3 seed=2\n" in capsys.readouterr().out
    assert listed(capsys, "runs/a")["a"]["differs"] == {}


def test_a_preset_stands_for_its_fields() -> None:
    configs = [compose([f"model={m}"]) for m in ("plt_tiny", "plt_20m", "plt_20m")]
    differing = differences([*configs, None])
    assert differing[3] == {}
    assert differing[1] == differing[2] and differing[1]["model.name"] == "plt_20m"
    assert "model.hidden_size" not in differing[0]
    other = compose(["model=plt_20m", "model.num_loops=3"])
    assert differences([*configs, other])[3]["model.num_loops"] == 3


def test_labels_of_many_fields_say_what_is_unusual() -> None:
    usual = {f"train.f{i}": 1 for i in range(9)}
    assert labels([usual, usual, usual | {"train.f3": 2.0}]) == ["", "", "train.f3=2"]
    unusual = dict.fromkeys(usual, 2)
    assert labels([usual, usual, unusual])[2].endswith("train.f3=2 and 5 more")


def test_any_runs_make_the_table_and_plot_of_a_sweep(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir(Path("runs/one"), "seed=1", "model.num_loops=1", losses=10, saved=10)
    run_dir(Path("runs/two"), "seed=1", losses=10, saved=10)
    run_dir(Path("runs/three"), "seed=2", losses=4)
    run_dir(Path("runs/again"), "seed=2", losses=4)
    torn = run_dir(Path("runs/torn"), "seed=3", losses=4)
    lines = (torn / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (torn / "metrics.jsonl").write_bytes(b"".join([*lines[:3], bytes(9) + b"\n", *lines[3:]]))
    assert cli.main(["runs", "runs/one", "runs", "--table", "out/table"]) == 0
    captured = capsys.readouterr()
    assert "runs/torn/metrics.jsonl: line 4 is no record, and left out" in caplog.messages
    written = {"sweep.md", "sweep.json", "sweep.png", "sweep_cost.png"}
    assert {p.name for p in Path("out/table").iterdir()} == written
    content = json.loads(Path("out/table/sweep.json").read_text())
    points = {point["point"]: point for point in content["points"]}
    # three seeds of one config are one point, a run that was done twice is not
    assert [point["exit_code"] for point in points.values()] == [0, None, None]
    assert points["runs/one"]["mean"]["val/loss"]["seeds"] == 1
    assert points["runs/again, runs/torn, runs/two"]["mean"]["val/loss"]["seeds"] == 3
    assert "runs/three" in points and content["loops"]["one"] == "runs/one"
    assert [row["run"] for row in content["runs"]] == [
        "runs/one",
        "runs/again",
        "runs/three",
        "runs/torn",
        "runs/two",
    ]
    for text in (captured.out, Path("out/table/sweep.md").read_text()):
        assert "\n- runs/one: model.num_loops=1 seed=1\n" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no folder runs"),
        (["nowhere", "file"], "2 problems"),
        (["documents"], "there is no run in documents"),
        (["run/checkpoints/step_00000003"], "there is no run in run/checkpoints"),
        (["run", "--tabel", "x"], "its options are --json, --table FOLDER, --help"),
        (["run", "--table"], "fix: --table FOLDER"),
        (["run", "--table", "t", "--json"], "one of them"),
        (["run", "--table", "file/below"], "cannot write to file/below"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("documents/sub").mkdir(parents=True)
    Path("documents/sub/note.txt").write_text("x")
    Path("file").write_text("x")
    run_dir(Path("run"), losses=1, saved=3)
    assert cli.main(["runs", *arguments]) == 3
    error = capsys.readouterr().err
    assert says in error and "fix: " in error


def test_the_corpus_of_a_run(tmp_path: Path) -> None:
    assert corpus_of(run_dir(tmp_path / "new", corpus="aa")) == "aa"
    older = run_dir(tmp_path / "older")
    checkpoint(older, 3, "bb", format_version=1)
    assert corpus_of(older) == "bb"
    (older / "corpus.json").write_text("{")
    assert corpus_of(older) == "bb"
    assert corpus_of(run_dir(tmp_path / "none")) is None


def test_no_line_is_wider_than_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Many differing fields, long values and large numbers; --json has the whole."""
    long = "data.path=[" + ",".join(f"/data/a_folder_of_sources_{i}" for i in range(9)) + "]"
    many = ["optim.lr=1.25e-5", "optim.beta1=0.875", "train.max_steps=12345678", "seed=77"]
    run_dir(Path("runs/plt_tiny-r2-cc8f20c8a9"), "data=files", long, losses=3, saved=3)
    run_dir(Path("runs/a_name_of_some_length-0123456789"), "data=files", *many, "path=/b", losses=9)
    run_dir(Path("runs/b"), "data=files", "path=/b", "name=b", losses=2)
    assert cli.main(["runs"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "optim.lr=1.25e-05" in text and "9/12345678" in text and "…" in text
    found = listed(capsys)
    paths = found["plt_tiny-r2-cc8f20c8a9"]["differs"]["data.path"]
    assert len(paths) == 9


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("run/metrics.jsonl", "fix: loopcoder runs run\n"),
        ("run/checkpoints/step_00000003/state.json", "fix: loopcoder runs run\n"),
        ("note.txt", "fix: loopcoder runs DIR"),
    ],
)
def test_a_file_is_called_a_file(file: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("note.txt").write_text("x")
    run_dir(Path("run"), losses=1, saved=3)
    assert cli.main(["runs", file]) == 3
    error = capsys.readouterr().err
    assert f"{file} is a file" in error and fix in error


def differing(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What `loopcoder runs` says of each run, in the order of their folders."""
    assert cli.main(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    return [entry["differs"] for entry in sorted(listed, key=lambda entry: entry["run"])]


@pytest.mark.parametrize("preset", ["files", "hf"])
def test_a_path_is_said_once(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run_dir(Path("runs", name), f"data={preset}", f"path=/src/{name}", losses=1)
    assert differing(capsys) == [{"data.path": "/src/a"}, {"data.path": "/src/b"}]


def test_sources_that_differ_otherwise_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    for name, field in (("a", "text"), ("b", "content")):
        sources = f"data.build.sources=[{{kind:files,path:/src,text_field:{field}}}]"
        run_dir(Path("runs", name), "data=files", "path=/src", sources, losses=1)
    assert [list(fields) for fields in differing(capsys)] == [["data.build.sources"]] * 2


STARTED, CONTINUES = {"kind": "run_started"}, {"kind": "run_continues", "path": "x"}
BRANCHED = {"kind": "run_starts", "path": "/first/checkpoints/step_00000003"}
OLD, FRESH = [{"kind": "eval"}], [STARTED, {"kind": "saved"}, STARTED, CONTINUES]


@pytest.mark.parametrize(
    ("events", "recorded", "said"),
    [
        (FRESH, "/nope", None),
        ([STARTED, BRANCHED, STARTED, CONTINUES], "/nope", BRANCHED["path"]),
        ([STARTED, BRANCHED, STARTED, CONTINUES], None, BRANCHED["path"]),
        ([STARTED, BRANCHED], "/first", "/first"),
        ([STARTED, STARTED, BRANCHED, STARTED, CONTINUES], "/first", "/first"),
        (OLD, "/first", "/first"),
        ([], "/first", "/first"),
    ],
)
def test_where_a_run_came_from_is_what_its_first_start_had(
    events: list[dict[str, str]], recorded: str | None, said: str | None
) -> None:
    asked = [f"checkpoint.init_from={recorded}"] if recorded else []
    folder = run_dir(Path("runs/a"), *asked, losses=1)
    lines = [json.dumps(e).encode() + b"\n" for e in events]
    lines.insert(0, b'{"kind": "run_\xff\n')  # of a power cut
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    config = read_run(folder).config
    assert config is not None and config.checkpoint.init_from == said
