"""What the doctor prints, and what it refuses."""

from __future__ import annotations

import pytest

from loopcoder.cli import main as cli
from tests.cli.conftest import Loop


def test_doctor_shows_the_machine_and_whether_a_config_fits(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "GiB memory" in output and "plt_tiny" in output and "fits on 1 process" in output
    assert cli.main(["doctor", "parallel.cp=2"]) == 3
    assert "not built yet" in capsys.readouterr().err
    assert loop.called_with == ()
