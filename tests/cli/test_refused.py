"""What the config, the machine and the run's folder refuse is refused at once, by every verb that
looks at a run, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from launch.sweep import run as sweep_module
from loopcoder.backends import Backends
from loopcoder.cli import doctor, train
from loopcoder.cli import main as cli
from loopcoder.cli.checks import check_inputs, check_services
from loopcoder.config.compose import compose
from loopcoder.errors import InputError
from loopcoder.storage.folders import folder_for
from loopcoder.storage.lock import hold
from loopcoder.storage.run_lock import only_run_in, refuse_second
from tests.cli.conftest import Loop
from tests.cli.run_dirs import run_dir


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that is not refused fails the test instead of being trained."""
    monkeypatch.setattr(sweep_module, "start_point", lambda *_, **__: pytest.fail("started"))


MISTAKES = {
    "never": (["run_dir=old", "checkpoint.resume=never"], "has checkpoints up to step 5"),
    "require": (["run_dir=a/new", "checkpoint.resume=require"], "nothing to continue from"),
    "require by name": (["name=new", "checkpoint.resume=require"], "nothing to continue from"),
    "memory_steps": (["run_dir=a/new", "profile.memory_steps=[3]"], "fix: profile.memory_steps=[]"),
    "hardware": (["run_dir=a/new", "hardware.name=abacus"], "or hardware.name=auto"),
    "another width": (["run_dir=old", "model.hidden_size=64"], "fix: model.hidden_size="),
    "other loops": (["run_dir=old", "model.num_loops=3"], "fix: run_dir=ANOTHER_FOLDER"),
    "another seed": (["run_dir=old", "seed=5"], "fix: seed=1234"),
    "no validation set": (["run_dir=a/new", "eval.corpora={exam:/nowhere}"], "eval.corpora={}"),
    "a set named as a field": (["run_dir=a/new", "eval.corpora={bpb:/x}"], "val/bpb is a field"),
    "other rows": (["run_dir=old", "model.vocab_size=4096"], "fix: model.vocab_size=128"),
    "a branch of another width": (
        ["run_dir=a/new", "checkpoint.init_from=old", "model.num_layers=3"],
        "fix: model.num_layers=",
    ),
    "a branch of nothing": (
        ["run_dir=a/new", "checkpoint.init_from=unsaved"],
        "holds no complete checkpoint",
    ),
    "a branch that is over": (
        [
            "run_dir=a/new",
            "checkpoint.init_from=old",
            "checkpoint.init_position=true",
            "train.max_steps=5",
        ],
        "fix: train.max_steps=10",
    ),
}


def everything(folder: Path = Path()) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


VERBS = ("train --print-config", "doctor", "train -m")
OF_EVERY_VERB = ("never", "require", "memory_steps", "a branch of another width")


@pytest.mark.parametrize(
    ("mistake", "verb"),
    [(m, "train") for m in MISTAKES] + [(m, v) for m in OF_EVERY_VERB for v in VERBS],
)
def test_it_is_refused_at_once_by_every_verb(
    loop: Loop, capsys: pytest.CaptureFixture[str], mistake: str, verb: str
) -> None:
    overrides, says = MISTAKES[mistake]
    run_dir(Path("old"), losses=5, saved=5)
    run_dir(Path("unsaved"), losses=1)
    if verb == "train -m":  # every point has a folder of its own
        if "run_dir=old" in overrides:
            run_dir(Path("sweep/00_beta1=0.8"), losses=5, saved=5)
        overrides = [o for o in overrides if not o.startswith(("run_dir=", "name="))]
        overrides += ["run_dir=sweep", "optim.beta1=0.8,0.7"]
    before = everything()
    assert cli.main([*verb.split(), *overrides]) == 3
    error = capsys.readouterr().err
    assert says in error and "why: " in error and "fix: " in error
    assert loop.called_with == () and not loop.verified
    assert everything() == before


def test_a_finished_point_of_a_sweep_is_not_refused(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume=never and the same sweep again: what is done is skipped, not refused."""
    monkeypatch.setattr(sweep_module, "is_finished", lambda point, ledger: True)
    run_dir(Path("sweep/00_seed=1"), "seed=1", losses=10, saved=10)
    run_dir(Path("sweep/01_seed=2"), "seed=2", losses=10, saved=10)
    assert cli.main(["train", "-m", "run_dir=sweep", "seed=1,2", "checkpoint.resume=never"]) == 0


def refuse(*_: Any, **__: Any) -> None:
    raise InputError.of("a source is empty", "no documents", "another")


def of_another_tokenizer(*_: Any, **__: Any) -> Any:
    return types.SimpleNamespace(
        dir=Path("/c"),
        vocab_size=128,
        tokenizer_path="/c/t",
        tokenizer_hash="x",
        fingerprint="y",
        has_digests=True,
        is_packed=False,
        members=(),
    )


@pytest.mark.parametrize(("prepare", "says"), [(refuse, "empty"), (of_another_tokenizer, "ids")])
def test_what_the_corpus_refuses_leaves_no_folder(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Any,
    says: str,
) -> None:
    run_dir(Path("old"), losses=5, saved=5)
    monkeypatch.setattr(sys.modules["data_pipeline.driver"], "prepare", prepare)
    before = everything()
    branch = ["checkpoint.init_from=old", "data.build.cache_dir=b/cache"]
    for processes in (1, 2):
        command = ["train", "run_dir=a/new", *branch, f"parallel.nproc_per_node={processes}"]
        command.append("train.micro_batch_size=1")
        assert cli.main(command) == 3
        assert says in capsys.readouterr().err and everything() == before
    assert loop.called_with == ()
    Path("there").mkdir()
    assert cli.main(["train", "run_dir=there", *branch]) == 3
    assert everything() == before | {"there"}  # it was not ours to remove


def test_a_corpus_that_is_refused_leaves_no_cache(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["data_pipeline.driver"], "prepare", refuse)
    assert cli.main(["data", "data.build.cache_dir=b/cache"]) == 3
    assert everything() == set()


def test_a_folder_stays_where_something_is_in_it() -> None:
    with folder_for(Path("a/b"), "run_dir"):
        Path("a/note").touch()
    assert everything() == {"a", "a/note"}


def test_a_run_that_is_refused_leaves_no_lock() -> None:
    with pytest.raises(InputError), only_run_in(Path("run")):
        refuse()
    assert everything() == {"run"}
    with pytest.raises(InputError), only_run_in(Path("run")):
        Path("run/metrics.jsonl").touch()
        refuse()
    assert everything() == {"run", "run/metrics.jsonl", "run/.lock"}


def test_a_run_in_work_refuses_a_second_before_its_corpus(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir(Path("old"), losses=5, saved=5)
    with hold(folder / ".lock", refuse):
        assert cli.main(["train", "run_dir=old", "train.max_steps=20"]) == 3
        assert cli.main(["doctor", "run_dir=old", "train.max_steps=20"]) == 0
    assert "another process is training in old" in capsys.readouterr().err
    assert not loop.verified
    refuse_second(folder)
    refuse_second(Path("nowhere"))


def a_corpus() -> None:
    Path("corpus").mkdir()
    domains = {"text": {}, "code": {}}
    manifest = {"format_version": 2, "fingerprint": "f", "domains": domains}
    (Path("corpus") / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("verb", ["train", *VERBS])
@pytest.mark.parametrize(
    "asked",
    [
        ["data.mixture={text:1,prose:1}"],
        ["data.stages=[{until:999,mixture:{text:1}},{mixture:{text:1,prose:1}}]"],
    ],
)
def test_what_needs_the_corpus_is_refused_with_the_rest(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    asked: list[str],
) -> None:
    """A domain that the corpus lacks, a service that nobody is logged in to: before its bytes are
    read, and together with the other mistakes where one check has them all."""
    a_corpus()
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for module in (doctor, train):
        monkeypatch.setattr(module, "detect", lambda: Backends(versions={"wandb": "0"}))
    asked = [*asked, "logging.wandb=online", "data=corpus", "path=corpus"]
    asked += ["optim.beta1=0.8,0.7"] if verb == "train -m" else ["optim.min_lr=9"]
    before = everything()
    assert cli.main([*verb.split(), *asked]) == 3
    error = capsys.readouterr().err
    assert ("4 problems" if verb == "train -m" else "3 problems") in error
    assert "corpus corpus has text and code, not prose" in error
    assert "fix: wandb login, export WANDB_API_KEY=KEY, or logging.wandb=offline" in error
    assert ("optim.min_lr=9" in error) == (verb != "train -m")
    assert everything() == before and not loop.verified and not loop.called_with


def test_a_service_that_cannot_be_reached_is_refused_before_the_corpus(
    monkeypatch: pytest.MonkeyPatch, loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setattr(train, "detect", lambda: Backends(versions={"wandb": "0"}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        check_services(compose(["logging.wandb=online"]))
    before = everything()
    assert cli.main(["train", "logging.wandb=online", "run_dir=here"]) == 3
    error = capsys.readouterr().err
    assert f"{url.removeprefix('http://')} cannot be reached" in error
    assert "fix: logging.wandb=offline" in error
    assert everything() == before and not loop.called_with
    check_services(compose(["logging.wandb=offline"]))
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")  # which writes nothing there
        check_services(compose(["logging.wandb=online"]))
    # of a server behind a proxy only the proxy can be asked
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
        check_services(compose(["logging.wandb=online"]))
    with pytest.raises(InputError, match="wandb=online, and"):
        check_services(compose(["logging.wandb=online"]))


def test_who_is_logged_in_may_write_online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    online = compose(["logging.wandb=online"])
    check_inputs(compose([]))
    with pytest.raises(InputError, match="nobody is logged in"):
        check_inputs(online)
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")  # which writes nothing there
        check_inputs(online)
    with monkeypatch.context() as patched:
        patched.setenv("WANDB_API_KEY", "x")
        check_inputs(online)
    settings = Path("home/.config/wandb/settings")
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    check_inputs(online)
    settings.unlink()
    netrc = Path("home/.netrc")
    netrc.write_text("machine api.wandb.ai login user password x\n")
    netrc.chmod(0o600)
    check_inputs(online)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    with pytest.raises(InputError, match=r"wandb\.example\.org"):
        check_inputs(online)
