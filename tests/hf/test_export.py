"""Exports: the same bytes from any layout, never half of one, and clear words for what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loopcoder import loaded
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.cli import main as cli
from loopcoder.config.build import EODS
from loopcoder.config.data import DataConfig, StageConfig
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position, advance
from loopcoder.errors import DiskFull, InputError, Unreachable
from loopcoder.hf import export as module
from loopcoder.hf.card import Tokenizer, model_card
from loopcoder.hf.export import RECORD, export
from loopcoder.hf.upload import upload
from loopcoder.storage import folders
from tests.checkpoint.saved import change_metadata, mend_manifest
from tests.configs import small_config
from tests.conftest import fresh_seed
from tests.hf.folders import Made, made

pytestmark = pytest.mark.dist
SHARD = 40_000
"""A small export has four files of weights then."""


@pytest.fixture(scope="module")
def case(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("made"), fresh_seed(), num_loops=3)


@pytest.fixture
def copied(case: Made, tmp_path: Path) -> Checkpoint:
    """A checkpoint of its own, to be damaged."""
    folder = tmp_path / case.checkpoint.path.name
    shutil.copytree(case.checkpoint.path, folder)
    return Checkpoint(folder, case.checkpoint.step)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_weight_is_there_bit_for_bit(case: Made, tmp_path: Path) -> None:
    done = export(case.checkpoint, tmp_path / "out", shard_bytes=SHARD)
    files = sorted(done.folder.glob("*.safetensors"))
    assert len(files) == 4 and max(f.stat().st_size for f in files) < SHARD + 20_000
    found = {name: x for file in files for name, x in load_file(file).items()}
    assert found.keys() == case.weights.keys()
    assert all(torch.equal(x.double(), case.weights[name]) for name, x in found.items())
    assert len({path.stat().st_mode for path in done.folder.iterdir()}) == 1
    index = json.loads((done.folder / module.INDEX).read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in found.values())
    card = (done.folder / "README.md").read_text()
    assert "512" in card and "a = 0.707 and b = 0.053" in card and "not published" in card
    assert done.size_bytes > index["metadata"]["total_size"] and left_in(tmp_path) == {"out"}


def test_the_card_says_what_weights_began_from_and_what_is_left_out(case: Made) -> None:
    state, content = case.checkpoint.state(), {"dtype": "float32"}
    content |= {"plt_emb_scale": None, "plt_hidden_scale": None}

    def card_of(config: Config) -> str:
        return model_card(case.checkpoint, config, state, content, 4, "1.0")

    assert "started from" not in card_of(case.config) and "left out" not in card_of(case.config)
    origin = "/home/me/runs/base/checkpoints/step_00001000"
    start = replace(case.config.checkpoint, init_from=origin)
    objective = replace(case.config.objective, exit=True)
    card = card_of(replace(case.config, checkpoint=start, objective=objective))
    assert "| started from | base, step 1,000 |" in card and "/home/me" not in card
    assert "| left out | the exit gate" in card
    start = replace(start, init_from="s3://bucket/plt-start/")
    assert "| plt-start |" in card_of(replace(case.config, checkpoint=start))


def test_an_export_is_no_checkpoint_and_the_import_is_named(
    case: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(case.checkpoint, tmp_path / "out").folder
    assert cli.main(["export", f"checkpoint={folder}", f"output={tmp_path / 'again'}"]) == 3
    said = capsys.readouterr().err
    assert "is a folder for transformers" in said and f"loopcoder import input={folder}" in said


def test_16_bits_and_fp8_are_exported_as_16_bits(ranks: Any, tmp_path: Path) -> None:
    case = made(tmp_path / "made", fresh_seed(), precision="bf16")
    plain = export(case.checkpoint, tmp_path / "bf16").folder
    weights = load_file(plain / "model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(x.double(), case.weights[name]) for name, x in weights.items())
    assert json.loads((plain / "config.json").read_text())["dtype"] == "bfloat16"
    # what a run in FP8 has besides: its precision, and the history of its scaling
    path = case.checkpoint.path
    config = (path / "config.yaml").read_text()
    assert "name: bf16" in config
    (path / "config.yaml").write_text(config.replace("name: bf16", "name: fp8_delayed"))

    def with_history(metadata: Any) -> Any:
        from torch.distributed.checkpoint.metadata import BytesStorageMetadata

        key = "model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2"
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        return metadata

    change_metadata(path, with_history)
    fp8 = export(case.checkpoint, tmp_path / "fp8").folder
    assert contents(fp8)["model.safetensors"] == contents(plain)["model.safetensors"]
    assert "trained in fp8_delayed" in (fp8 / "README.md").read_text()


def test_after_the_last_step_of_a_stage_the_export_is_of_that_stage(
    ranks: Any, tmp_path: Path
) -> None:
    stages = [
        StageConfig(until=512, rope_theta=123.0, mixture={"code": 7.0}),
        StageConfig(rope_theta=4567.0, mixture={"text": 9.0}),
    ]
    position = Position()
    for step, theta in ((2, 123.0), (3, 4567.0)):
        data = DataConfig(name="test", seq_length=32, mixture={"code": 1.0}, stages=stages)
        config = replace(small_config(), data=data)
        while position.step < step:
            position, _ = advance(config, position)
        assert position.stage == 1
        case = made(tmp_path / str(step), 1, stages=stages, position=position)
        out = export(case.checkpoint, tmp_path / f"out{step}").folder
        assert json.loads((out / "config.json").read_text())["rope_theta"] == theta
        mixture = "code 7" if step == 2 else "text 9"
        assert f"by weight: {mixture}" in (out / "README.md").read_text()
        run = loaded.load_part(case.checkpoint, case.config, ranks)
        assert run.model.rope_theta == theta


@pytest.mark.parametrize("name", EODS)
def test_every_end_of_a_document_that_a_corpus_may_have_is_known(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [{"content": name, "id": 7}]}), encoding="utf-8")
    assert Tokenizer.of(path).eos_ids == 7


def test_the_same_export_is_written_once(case: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # one that is empty is no other
    first = export(case.checkpoint, out)
    before = out.stat().st_mtime_ns
    again = export(case.checkpoint, out)
    assert (first.was_there, again.was_there) == (False, True)
    assert out.stat().st_mtime_ns == before and again.size_bytes == first.size_bytes
    with pytest.raises(InputError, match="is there already"):
        export(case.checkpoint, out, shard_bytes=SHARD)
    (out / "config.json").write_text("{}")
    with pytest.raises(InputError, match="altered"):
        export(case.checkpoint, out)


def test_what_is_there_stays(case: Made, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("notes", "file", "link"):
        with pytest.raises(InputError, match="is there already"):
            export(case.checkpoint, tmp_path / name)
    assert left_in(tmp_path) == {"notes", "file", "link"}
    assert left_in(tmp_path / "notes") == {"mine.txt"}


@pytest.mark.parametrize("field", ["first", "middle", "last"])
def test_a_damaged_checkpoint_is_no_folder(copied: Checkpoint, tmp_path: Path, field: str) -> None:
    """One bit, to which even the manifest agrees."""
    (shard,) = copied.path.glob("*.distcp")
    content = bytearray(shard.read_bytes())
    from loopcoder.checkpoint.unpickled import read_metadata

    infos = [i for i in read_metadata(copied).storage_data.values() if i.length > 2000]
    infos.sort(key=lambda info: info.offset)
    info = infos[{"first": 0, "middle": len(infos) // 2, "last": -1}[field]]
    content[info.offset + info.length // 2] ^= 1
    shard.write_bytes(content)
    mend_manifest(copied.path)
    with pytest.raises(InputError, match=r"is not what was saved|cannot be read"):
        export(copied, tmp_path / "out")
    assert left_in(tmp_path) == {copied.path.name}


def test_a_truncated_or_foreign_checkpoint_is_named(copied: Checkpoint, tmp_path: Path) -> None:
    (shard,) = copied.path.glob("*.distcp")
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(InputError, match=shard.name):
        export(copied, tmp_path / "out")
    mend_manifest(copied.path)
    with pytest.raises(InputError, match=r"cannot be read|is not what"):
        export(copied, tmp_path / "out")

    def without_norm(metadata: Any) -> Any:
        del metadata.state_dict_metadata["model.decoder.final_layernorm.weight"]
        return metadata

    change_metadata(copied.path, without_norm)
    with pytest.raises(InputError, match=r"lacks decoder\.final_layernorm"):
        export(copied, tmp_path / "out")
    assert cli.main(["export", f"checkpoint={tmp_path}/none", f"output={tmp_path}/out"]) == 3
    assert left_in(tmp_path) == {copied.path.name}


def test_a_checkpoint_without_its_tokenizer_is_refused(copied: Checkpoint, tmp_path: Path) -> None:
    (copied.path / "tokenizer.json").unlink()
    mend_manifest(copied.path)
    with pytest.raises(InputError, match=r"has no tokenizer\.json, and /corpus/tokenizer\.json"):
        export(copied, tmp_path / "out")


def test_a_full_disk_leaves_nothing(
    case: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(folders, "free_bytes", lambda _: 1000)
        with pytest.raises(DiskFull, match=r"1\.0 kB of free space(.|\n)*output=FOLDER"):
            export(case.checkpoint, tmp_path / "out")
    calls = []

    def full_at_the_second(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            said = f"Error while serializing: I/O error: No space left (os error {errno.ENOSPC})"
            raise module.SafetensorError(said)
        save_file(*arguments, **options)

    save_file = module.save_file
    monkeypatch.setattr(module, "save_file", full_at_the_second)
    with pytest.raises(DiskFull, match="no space left"):
        export(case.checkpoint, tmp_path / "out", shard_bytes=SHARD)
    assert len(calls) == 2 and left_in(tmp_path) == set()


def test_uploads_are_described_and_bad_names_refused(
    case: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", f"checkpoint={case.checkpoint.path}", f"output={tmp_path / 'out'}"]
    assert cli.main([*command, "hub=me/model", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "would be uploaded to me/model" in out and "model.safetensors" in out
    assert cli.main([*command, "hub=me//model", "dry_run=true"]) == 3
    assert cli.main([*command, "dry_run=true"]) == 3
    elsewhere = [command[0], command[1], f"output={tmp_path / 'new'}"]
    assert cli.main([*elsewhere, "hub=me//model"]) == 3
    assert left_in(tmp_path) == {"out"}  # the name is looked at first
    assert cli.main([*command[:2], "output=."]) == 3
    assert cli.main([*command, "outptu=x"]) == 3
    assert cli.main(["export", f"checkpoint={case.checkpoint.path}"]) == 3


def test_only_the_files_of_the_export_are_uploaded(
    case: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    done = export(case.checkpoint, tmp_path / "out")
    (done.folder / "notes.txt").write_text("mine")
    sent: dict[str, Any] = {}
    raised: list[Exception] = []

    def upload_folder(_: Any, **options: Any) -> Any:
        sent.update(options)
        raise raised[-1]

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    connection = next(
        kind
        for kind in huggingface_hub.errors.HfHubHTTPError.__mro__
        if not kind.__module__.startswith("huggingface_hub")
    )
    for error, said in (
        (ConnectionRefusedError("refused"), Unreachable),
        (connection("no route"), Unreachable),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
    ):
        raised.append(error)
        with pytest.raises(said):
            upload(done.folder, done.files, "me/model", dry_run=False)
    there = {path.name for path in done.folder.iterdir()}
    assert set(sent["allow_patterns"]) == there - {"notes.txt"}


@pytest.mark.chaos
def test_a_kill_leaves_no_folder_of_that_name(case: Made, tmp_path: Path) -> None:
    """Killed at each file in turn; the next export removes what is left."""
    out = tmp_path / "out"
    code = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from loopcoder.checkpoint.format import find\n"
        "from loopcoder.hf import export as module\n"
        "count = [int(sys.argv[3])]\n"
        "synced = module.synced_entry\n"
        "def entry(path):\n"
        "    count[0] -= 1\n"
        "    if count[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return synced(path)\n"
        "module.synced_entry = entry\n"
        "module.export(find(Path(sys.argv[1])), Path(sys.argv[2]), shard_bytes=40000)\n"
    )
    for after in (0, 3, 9):
        command = [sys.executable, "-c", code, str(case.checkpoint.path), str(out), str(after)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists() and ".out.part" in left_in(tmp_path)
    export(case.checkpoint, out, shard_bytes=SHARD)
    assert left_in(tmp_path) == {"out"} and (out / RECORD).is_file()


@pytest.mark.chaos
def test_a_small_disk_is_filled(case: Made, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folders, "free_bytes", lambda _: 1 << 40)  # others fill it meanwhile
            with pytest.raises(DiskFull, match="no space left"):
                export(case.checkpoint, disk / "out", shard_bytes=SHARD)
        assert left_in(disk) == set()
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=True)
