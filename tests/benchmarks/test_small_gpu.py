"""Small models against the peer: the shapes are what their names say, and rows are measured."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from loopcoder.backends import Backends
from loopcoder.model.flops import block_parameters, parameters

GIVEN = Namespace(rows=32, length=1024)


@pytest.mark.parametrize("shape", ["14M", "91M", "300M"])
def test_shapes_have_as_many_parameters_as_they_say(shape: str) -> None:
    import small_gpu

    found = small_gpu.config_of(shape, 1, GIVEN, Backends()).model
    millions = parameters(found, small_gpu.VOCAB) / 1e6
    assert millions == pytest.approx(float(shape[:-1]), rel=0.06)
    twice = small_gpu.config_of(shape, 2, GIVEN, Backends()).model
    assert twice.num_layers * twice.num_loops == found.num_layers
    assert block_parameters(twice) == block_parameters(found)


def test_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU: two sides take turns, and train."""
    import small_gpu

    out = tmp_path / "rows.json"
    options = "--shapes tiny --loops 2 --documents packed --rounds 2 --steps 2 --rows 2"
    code = small_gpu.main(
        [*options.split(), "--length", "32", "--mean-document", "9", "--json", str(out)]
    )
    assert code == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["shape"], row["loops"], row["documents"]) == ("tiny", 2, "packed")
    assert row["commit"] and row["hardware"]
    for side in ("peer", "off"):
        assert len(row["step_ms"][side]) == 2 and min(row["step_ms"][side]) > 0
        assert 0 < row["loss"][side] < 20
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3 and table[2].startswith("| tiny | 2 | packed | ")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    import small_gpu

    times = {"peer": [10.0, 12.0, 11.0], "off": [20.0, 20.0, 20.0], "on": [10.0, 10.0, 10.0]}
    row = dict(shape="14M", loops=1, documents="one", tokens=32768, step_ms=times)
    small_gpu.print_table([row | dict(memory_gib={"peer": 3.0, "off": 4.0, "on": 5.5})])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "| 14M | 1 | one | 2,978,909 | 1,638,400 | 3,276,800 | 0.550 (0.500 to 0.600) "
        "| 1.100 (1.000 to 1.200) | 3.0 / 4.0 / 5.5 GiB |"
    )


def test_no_time_is_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    import small_gpu

    assert small_gpu.main(["--seconds", "0"]) == 1
    assert "no time for 14M/1/one" in capsys.readouterr().err
