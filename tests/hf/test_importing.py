"""Folders for transformers become checkpoints: every bit of the weights, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import loopcoder
from loopcoder import loaded
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.rebuilt import refuse_other_tokens
from loopcoder.checkpoint.start import check_start
from loopcoder.cli import main as cli
from loopcoder.cli.diagnose import _names
from loopcoder.config.compose import compose
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_NO_RETRY, DiskFull, InputError
from loopcoder.hf.config import to_released
from loopcoder.hf.export import export
from loopcoder.hf.folder import ReleasedFolder
from loopcoder.hf.importing import import_folder, plan
from loopcoder.hf.mapping import from_released, plain_name
from loopcoder.hf.opened import checkpoint_at
from loopcoder.storage import folders
from loopcoder.storage.files import synced_entry
from loopcoder.storage.lock import hold
from tests.configs import small_model
from tests.conftest import fresh_seed
from tests.hf.folders import made
from tests.hf.released import VOCAB, llama_config, random_tensors, write_folder

TOKENS = 326
"""Of the tokenizer in a folder."""
IDS = [5, 9, 17, 3, 20, 41, 8, 2, 99, 7, 11]


@pytest.fixture(autouse=True)
def one_world(ranks: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are loaded into the world of the tests."""
    monkeypatch.setattr(loaded, "_alone", lambda: ranks)
    yield


def imported(folder: Path, output: Path, *overrides: str) -> tuple[dict[str, Tensor], list[str]]:
    """Import a folder and load it; return its weights by our names, and what was said."""
    said: list[str] = []
    import_folder(plan(ReleasedFolder(folder), overrides), output, said.append)
    run = loopcoder.load(output)
    return weights_of(run), said


def weights_of(run: Any) -> dict[str, Tensor]:
    return {plain_name(name): x.detach().clone() for name, x in run.model.named_parameters()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        rows = found[name][: len(x)]
        assert torch.equal(rows, x.to(rows.dtype)), name
        assert not found[name][len(x) :].any(), name


@pytest.mark.parametrize("loops", [1, 3])
def test_every_weight_arrives(tmp_path: Path, loops: int) -> None:
    draw = random.Random(seed := fresh_seed())
    gate: Any = draw.choice(["hidden", "query"])
    scales = draw.choice([dict(emb_scale=None, hidden_scale=None), {}])
    model = small_model(num_loops=loops, gate=gate, num_layers=3, **scales)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    tensors = random_tensors(model, seed, dtype)
    theirs = dict(tensors)
    if draw.random() < 0.5:
        older = ("plt_gate", "loop_gate_proj")
        theirs = {name.replace(*older): x for name, x in tensors.items()}
    folder = write_folder(tmp_path / "in", to_released(model, VOCAB), theirs, shards=4)
    found, _ = imported(folder, tmp_path / "out")
    assert_equal(found, from_released(tensors, model))
    checkpoint = layout.find(tmp_path / "out")
    state, config = checkpoint.state(), checkpoint.config()
    assert (state.step, state.num_loops, state.vocab_size, state.tokens) == (0, loops, 384, VOCAB)
    assert (config.model.gate, config.model.emb_scale) == (
        gate if loops > 1 else config.model.gate,
        model.emb_scale,
    )
    assert not list(layout.faults(checkpoint, "hash"))
    preset = compose(["model=imported"], tmp_path / "out" / "conf").model
    assert preset == config.model
    assert not (tmp_path / "out.part").exists()

    back = export(checkpoint, tmp_path / "back").folder
    weights = load_file(back / "model.safetensors")
    assert weights.keys() == tensors.keys()
    for name, x in weights.items():
        assert torch.equal(x, tensors[name].to(x.dtype)), name
    card = (back / "README.md").read_text()
    assert "imported, not trained by loopcoder" in card
    for false in ("trained in", "tokens trained", "## Data", "| data |", "sequence length"):
        assert false not in card
    import_folder(plan(ReleasedFolder(back), ()), tmp_path / "again", lambda _: None)
    again = export(layout.find(tmp_path / "again"), tmp_path / "last").folder
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / file).read_bytes() == (back / file).read_bytes(), file


def test_a_tied_head_is_copied_and_a_dense_model_gets_loops(tmp_path: Path) -> None:
    model = small_model(num_loops=1)
    tensors = random_tensors(model, fresh_seed(), torch.float32)
    wanted = from_released(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, model
    )
    tied = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    folder = write_folder(tmp_path / "in", llama_config(model, is_tied=True), tied)
    found, said = imported(folder, tmp_path / "dense")
    assert_equal(found, wanted)
    assert "the head is a copy of the embedding" in "".join(said)
    own = write_folder(tmp_path / "own", llama_config(model, is_tied=True), tensors)
    found, said = imported(own, tmp_path / "with its head")
    assert_equal(found, from_released(tensors, model))
    assert "folder's own head" in "".join(said)
    looped, said = imported(folder, tmp_path / "looped", "model.num_loops=2", "model.name=mine")
    assert any("R = 1 becomes R = 2" in note for note in said)
    gates = {name: looped.pop(name) for name in list(looped) if "plt_gate" in name}
    assert len(gates) == 3 * model.num_layers
    for name, gate in gates.items():
        assert torch.equal(gate, torch.full_like(gate, float("gate_norm" in name))), name
    assert_equal(looped, wanted)
    assert (tmp_path / "looped/conf/model/mine.yaml").is_file()


@pytest.mark.parametrize("in_a_file", [True, False])
def test_an_export_says_of_special_tokens_and_chat_what_the_folder_said(
    tmp_path: Path, in_a_file: bool
) -> None:
    model = small_model()
    ids: dict[str, Any] = dict(bos_token_id=5, eos_token_id=[7, 300], pad_token_id=9)
    folder = write_folder(
        tmp_path / "in",
        to_released(model, VOCAB) | ids,
        random_tensors(model, 1, torch.float32),
    )
    generation, template = '{"eos_token_id": [7, 300],  "top_p": 0.9}', "{{ messages }} \u00e9"
    (folder / "generation_config.json").write_text(generation)
    about: dict[str, Any] = {"bos_token": {"content": "<|file_sep|>"}, "eos_token": "<|im_end|>"}
    if in_a_file:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        about["chat_template"] = [{"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    checkpoint = import_folder(plan(ReleasedFolder(folder)), tmp_path / "out")
    back = export(checkpoint, tmp_path / "back").folder
    config = json.loads((back / "config.json").read_text())
    assert {name: config[name] for name in ids} == ids
    tokens = json.loads((back / "tokenizer_config.json").read_text())
    assert (tokens["bos_token"], tokens["eos_token"]) == ("<|file_sep|>", "<|im_end|>")
    assert (back / "generation_config.json").read_text() == generation
    assert (back / "chat_template.jinja").read_text(encoding="utf-8") == template
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": "<s>"}))
    with pytest.raises(InputError, match="bos_token_id='<s>'"):
        plan(ReleasedFolder(folder))


def test_a_folder_is_loaded_compared_and_evaluated_as_a_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOOPCODER_CACHE", str(tmp_path / "cache"))
    model = small_model()
    tensors = random_tensors(model, fresh_seed(), torch.float32)
    a = write_folder(tmp_path / "a", to_released(model, VOCAB), tensors)
    out = tmp_path / "out"
    import_folder(plan(ReleasedFolder(a)), out)
    logits = loopcoder.load(out).logits(IDS)
    assert logits.shape == (len(IDS), TOKENS)  # further rows are no tokens
    opened = loopcoder.load(a)
    assert torch.equal(opened.logits(IDS), logits)
    every_row = opened.model(*opened._row(IDS), None).squeeze(-2).float()
    plain = torch.nn.functional.cross_entropy(
        every_row[:-1], torch.tensor(IDS[1:]), reduction="none"
    )
    torch.testing.assert_close(opened.loss(IDS)[-1], plain)  # without rows that pad
    assert len(list((tmp_path / "cache/imported").glob("*/a/checkpoints"))) == 1
    assert _names([checkpoint_at(str(a), tmp_path / "cache")], None) == ["a-0"]
    text = "text=def add(a, b):"
    assert cli.main(["compare", f"checkpoint={out}", f"folder={a}", text]) == 0
    assert "bit for bit" in capsys.readouterr().out
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.5
    b = write_folder(tmp_path / "b", to_released(model, VOCAB), tensors)
    assert cli.main(["compare", f"folder={a}", f"folder={b}", text]) == 1
    said = capsys.readouterr().out
    assert "1 of 21 tensors differ; decoder.layers.1.mlp.linear_fc1.weight is the first" in said
    assert said.count("more than rounding") == 2
    assert cli.main(["evaluate", f"checkpoint={out}"]) == EXIT_BAD_INPUT
    assert "data=files" in capsys.readouterr().err


def test_a_padded_model_is_compared_with_its_own_export(
    ranks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOOPCODER_CACHE", str(tmp_path / "cache"))
    case = made(tmp_path / "made", fresh_seed())
    out = export(case.checkpoint, tmp_path / "out").folder
    text = "text=def add(a, b):"
    places = f"checkpoint={case.checkpoint.path}", f"folder={out}"
    assert loopcoder.load(out).vocabulary < case.checkpoint.state().vocab_size
    assert cli.main(["compare", *places, text]) == 0
    said = capsys.readouterr().out
    assert "bit for bit" in said and "counted from 0" in said
    (out / "tokenizer.json").unlink()
    assert cli.main(["compare", *places, text]) == 0
    assert cli.main(["compare", *reversed(places), text]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{out} has no tokenizer" in said and "name the other model first" in said
    with pytest.raises(InputError, match="imported without a tokenizer"):
        loopcoder.load(out).logits("def")


def test_weights_without_a_tokenizer_say_what_trains_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    tensors = random_tensors(model, 1, torch.float32)
    folder, out = write_folder(tmp_path / "in", to_released(model, VOCAB), tensors), tmp_path / "o"
    assert cli.main(["import", f"input={folder}", f"output={out}", "tokenizer=none"]) == 0
    command, about = capsys.readouterr().out.splitlines()[1:]
    assert command.endswith("data.build.tokenizer=PATH") and "PATH is the tokenizer.json" in about
    words = shlex.split(command.replace("PATH", str(folder / "tokenizer.json")))
    asked = words[words.index("--config-dir") + 2 :]
    config = compose([*asked, "precision=fp32"], out / "conf")
    found: Any = SimpleNamespace(
        tokenizer_hash="any", fingerprint="c", vocab_size=TOKENS, tokenizer_path="t", members=()
    )
    check_start(config, tmp_path / "run", found)
    refuse_other_tokens(config, tmp_path / "run", [])
    build = replace(config.data.build, tokenizer="train")
    trained = replace(config, data=replace(config.data, build=build))
    with pytest.raises(InputError, match=r"data\.build\.tokenizer=PATH"):
        refuse_other_tokens(trained, tmp_path / "run", [])


Spoil = Callable[[Path, dict[str, Any], dict[str, Tensor]], None]


def _cut(folder: Path, *_: Any) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def _shard_gone(folder: Path, *_: Any) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def _outside(folder: Path, *_: Any) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))


def _no_tokenizer(folder: Path, *_: Any) -> None:
    (folder / "tokenizer.json").unlink()


def _other_tokenizer(folder: Path, *_: Any) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')


def _no_config(folder: Path, *_: Any) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path, *_: Any) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, "model-00002-of-00003.safetensors cannot be read"),
        (_shard_gone, "lacks model-00002-of-00003.safetensors"),
        (_outside, "../model-00002"),
        (_no_tokenizer, "tokenizer=PATH"),
        (_other_tokenizer, "tokenizer.json"),
        (_no_config, "config.json"),
        (_broken_config, "config.json cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Spoil, said: str
) -> None:
    model = small_model()
    config, tensors = to_released(model, VOCAB), random_tensors(model, 1, torch.float32)
    folder = write_folder(tmp_path / "in", config, tensors, shards=3)
    spoil(folder, config, tensors)
    out = tmp_path / "out"
    assert cli.main(["import", f"input={folder}", f"output={out}"]) == EXIT_BAD_INPUT
    assert said in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_tensors_that_do_not_fit_are_named_three_at_most(tmp_path: Path) -> None:
    model = small_model(num_layers=4)
    tensors = random_tensors(model, 1, torch.float32)
    for layer in range(4):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors[f"model.layers.{layer}.self_attn.q_norm.weight"] = torch.ones(8)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.ones(3, 4)
    folder = write_folder(tmp_path / "in", to_released(model, VOCAB), tensors)
    with pytest.raises(InputError) as caught:
        plan(ReleasedFolder(folder))
    text = str(caught.value)
    assert "model.layers.2.mlp.up_proj.weight and 1 more" in text
    assert "mlp.down_proj.weight ([3, 4], not [32, 48])" in text
    assert "q_norm.weight and 1 more" in text


class _Runs:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_of_a_folder_is_executed(tmp_path: Path) -> None:
    model, ran = small_model(), tmp_path / "ran"
    config = to_released(model, VOCAB) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_x.Model", "AutoConfig": "modeling_x.Config"}
    }
    folder = write_folder(tmp_path / "in", config, random_tensors(model, 1, torch.float32))
    (folder / "modeling_x.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs(ran)))
    import_folder(plan(ReleasedFolder(folder)), tmp_path / "out")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin and no safetensors"):
        plan(ReleasedFolder(folder))
    assert not ran.exists()


def test_what_the_weights_decide_is_not_overridden(tmp_path: Path) -> None:
    model = small_model(gate="query")
    folder = write_folder(
        tmp_path / "in", to_released(model, VOCAB), random_tensors(model, 1, torch.float32)
    )
    with pytest.raises(InputError, match="leave it out"):
        plan(ReleasedFolder(folder), ["model.num_layers=3"])
    with pytest.raises(InputError, match=r"model\.gate=hidden"):
        plan(ReleasedFolder(folder), ["model.gate=hidden"])
    with pytest.raises(InputError, match="tokens would be lost"):
        plan(ReleasedFolder(folder), ["model.vocab_size=128"])
    exact = plan(ReleasedFolder(folder), [f"model.vocab_size={VOCAB}"])
    assert exact.rows == VOCAB
    assert not list(exact.notes())


@pytest.mark.chaos
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    model = small_model()
    folder = write_folder(
        tmp_path / "in", to_released(model, VOCAB), random_tensors(model, 1, torch.float32)
    )
    command = [sys.executable, "-m", "loopcoder", "import"]
    found = subprocess.run(
        [*command, f"input={folder}", f"output={tmp_path}/out"],
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
    )
    assert found.returncode == EXIT_NO_RETRY, found.stderr
    assert "nothing of it is left" in found.stderr and "ulimit -f unlimited" in found.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    model = small_model()
    folder = write_folder(
        tmp_path / "in", to_released(model, VOCAB), random_tensors(model, 1, torch.float32)
    )
    planned = plan(ReleasedFolder(folder))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="there already"):
        import_folder(planned, tmp_path / "out")
    for unnamed in (".", "..", "/"):
        with pytest.raises(InputError, match="has a name"):
            import_folder(planned, Path(unnamed))
    for outside in ("../x", "/abs", "a/b", ".."):
        with pytest.raises(InputError, match=r"model\.name="):
            plan(ReleasedFolder(folder), [f"model.name={outside}"])
    (tmp_path / ".other.part").mkdir()  # of an import that was killed
    (tmp_path / ".other.part" / "half").touch()
    import_folder(planned, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "other", "out"]
    assert not (tmp_path / "other" / "half").exists()
    alone = hold(tmp_path / ".third.lock", lambda _: None)
    with alone, pytest.raises(InputError, match="one process writes"):
        import_folder(planned, tmp_path / "third")


def test_room_is_asked_for_all_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bits become 32, and the head of a tied model and gates are new."""
    model = small_model(num_loops=1)
    tensors = random_tensors(model, 1, torch.float16)
    del tensors["lm_head.weight"]
    folder = write_folder(tmp_path / "in", llama_config(model, is_tied=True), tensors)
    planned = plan(ReleasedFolder(folder), ["model.num_loops=2"])
    shard = import_folder(planned, tmp_path / "out").path / "__0_0.distcp"
    written = shard.stat().st_size
    assert 0.6 * written < planned.size_bytes < written  # each tensor has a header besides
    assert planned.size_bytes > 2 * sum(x.nbytes for x in tensors.values())
    monkeypatch.setattr(folders, "free_bytes", lambda _: planned.size_bytes)
    with pytest.raises(DiskFull):
        import_folder(planned, tmp_path / "another")


def test_an_altered_shard_is_found_by_its_digest(tmp_path: Path) -> None:
    model = small_model()
    folder = write_folder(
        tmp_path / "in", to_released(model, VOCAB), random_tensors(model, 1, torch.float32)
    )
    step = import_folder(plan(ReleasedFolder(folder)), tmp_path / "out").path
    shard = step / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    values = random_tensors(model, 1, torch.float32)["model.norm.weight"].numpy().tobytes()
    at = bytes(content).index(values)
    content[at + 4] ^= 1
    shard.write_bytes(content)
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"][shard.name] = synced_entry(shard)
    (step / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"final_layernorm\.weight is not what was saved"):
        loopcoder.load(tmp_path / "out")
