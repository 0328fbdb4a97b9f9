"""What a mistyped command offers: what was meant, not another verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcoder.cli import main as cli
from loopcoder.config.compose import compose
from tests.cli.conftest import Loop


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("data lst", "loopcoder data list"),
        ("data clen --unfinished", "loopcoder data clean --unfinished"),
        ("data reprot X", "loopcoder data report X"),
        ("data xyz", "loopcoder data --help"),
        ("data docs", "loopcoder data data=files path=docs"),
        ("runs --tabel x", "--table FOLDER"),
        ("runs --table", "--table FOLDER"),
        ("runs --table=", "--table FOLDER"),
        ("runs --table --json", "--table FOLDER"),
        ("data clean --older-than", "--older-than DAYS"),
        ("data clean --cache --yes", "--cache DIR"),
        ("data list --cache", "--cache DIR"),
        ("data report --cache", "--cache DIR"),
        ("data validate --cach", "--cache DIR"),
        ("data show X --domain", "--domain D"),
        ("data show X --documents", "--documents N"),
        ("data show X --domain --seed 3", "--domain D"),
        ("train --config-dir -m", "--config-dir DIR"),
        ("train --config-dri x", "--config-dir DIR"),
        ("train --print-confg", "--print-config"),
        ("evaluate checkpoint=run --jsn", "--json"),
        ("train --steps", "train.max_steps=NUMBER"),
        ("train --steps 100", "train.max_steps=100"),
        ("train --run-dir", "run_dir=FOLDER"),
        ("train --path", "data.path=FOLDER"),
        ("train run_dir", "run_dir=FOLDER"),
        ("data data=files path", "path=FOLDER"),
        ("train seed=1 model.num_loops", "model.num_loops=NUMBER"),
        ("train --isolate-documents", "data.isolate_documents=true"),
        ("runs --jsn", "--json"),
        ("data show X --domian=text", "--domain=text"),
        ("data list --cahce X", "--cache DIR"),
        ("help nope", "loopcoder help"),
        ("help dta", "loopcoder data"),
        ("help trian", "loopcoder train"),
        ("evaluate checkpoint=", "loopcoder evaluate checkpoint=DIR"),
        ("data train-langid", "loopcoder data train-langid --help"),
        ("data train-langid docs --max-documents x --out y", "loopcoder data train-langid --help"),
        ("data audit", "loopcoder data audit --help"),
        ("data audit docs --share", "loopcoder data audit --help"),
        ("data chat-from-docs", "loopcoder data chat-from-docs --help"),
        ("data chat-from-evals x.whl", "loopcoder data chat-from-evals --help"),
        ("train run_dir=", "run_dir=FOLDER, or leave run_dir= out"),
        ("train -m seed=1,2 run_dir=", "run_dir=FOLDER, or leave run_dir= out"),
        ("train path=", "data.path=FOLDER, or leave data.path= out"),
        ("data data.build.cache_dir=", "data.build.cache_dir=FOLDER, or leave"),
        ("doctor checkpoint.init_from=", "checkpoint.init_from=FOLDER, or leave"),
    ],
)
def test_what_was_meant_is_offered(
    loop: Loop, capsys: pytest.CaptureFixture[str], typed: str, fix: str
) -> None:
    Path("docs").mkdir()
    assert cli.main(typed.split()) == 3
    error = capsys.readouterr().err
    assert f"\n    fix: {fix}" in error and "\n    why: " in error
    assert not loop.called_with and not loop.verified


@pytest.mark.parametrize("folder", ["link", "link/below", "other"])
@pytest.mark.parametrize("verb", [["train"], ["train", "-m", "seed=1,2"]])
def test_a_link_that_leads_nowhere(
    loop: Loop, capsys: pytest.CaptureFixture[str], folder: str, verb: list[str]
) -> None:
    Path("link").symlink_to("/nowhere/at/all")
    Path("other").symlink_to("link")
    assert cli.main([*verb, f"run_dir={folder}"]) == 3
    assert "is a link to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("run_dir=${seed}", "7"),
        ("run_dir=a-${seed}", "a-7"),
        ("name=${train.max_steps}", "300"),
        ("run_dir=${model.name}", "plt_tiny"),
    ],
)
def test_a_text_may_refer_to_a_number(written: str, value: str) -> None:
    config = compose([written, "seed=7", "train.max_steps=300"])
    assert getattr(config, written.partition("=")[0]) == value
