"""A run that goes on in another layout and comes back: the same samples, and the same weights and
moments bit for bit whenever it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.digest import read_digest
from loopcoder.errors import EXIT_BAD_INPUT
from tests.chaos.kills import FASTEST
from tests.chaos.worlds import ForkServer, World
from tests.checkpoint.test_digest import flip_a_bit_of
from tests.train.conftest import documents, environment  # noqa: F401

pytestmark = pytest.mark.dist_full

TARGETS: dict[str, tuple[int, list[str]]] = {
    # ranks, overrides
    "dp1": (1, []),
    "tp2": (2, ["parallel.tp=2"]),
    "pp2": (2, ["parallel.pp=2"]),
}
OBSERVED = """
import json
from loopcoder.train import loop
from loopcoder.checkpoint.save import Saver

load, step = loop.load, loop.Run._step

def loaded(checkpoint, network, optimizer, config, **kwargs):
    "Save what is in memory after loading, by the layout that is in use, beside the run."
    load(checkpoint, network, optimizer, config, **kwargs)
    saver = Saver(config, FOLDER / "loaded", lambda *_, **__: None)
    saver.save(network, None, optimizer, checkpoint.state())

def observed(run, data, logged):
    rows = [i for batch in data.microbatches for i in batch.sample_ids.tolist()]
    if run.ranks.tp_rank == run.ranks.pp_rank == 0:
        with open(FOLDER / f"samples.{rank}", "a") as file:
            file.write(json.dumps([data.after.step, rows]) + "\\n")
    return step(run, data, logged)

loop.load, loop.Run._step = loaded, observed
"""


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[ForkServer]:  # noqa: F811
    found = ForkServer(environment)
    yield found
    found.close()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read whole tensors from the shards of a checkpoint, without the code under test."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict[str, Any] = {}
    _load_state_dict(
        found,
        storage_reader=FileSystemReader(folder),
        planner=_EmptyStateDictLoadPlanner(),
        no_dist=True,
    )
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}


def assert_loaded_as_saved(folder: Path, run_dir: Path, step: int) -> None:
    saved = checkpoints.step_folder(run_dir, step)
    loaded = checkpoints.step_folder(folder / "loaded", step)
    ours, theirs = tensors(saved), tensors(loaded)
    for kind in ("model.", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq."):
        assert any(name.startswith(kind) and bool(x.any()) for name, x in ours.items()), kind
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.equal(x.view(torch.int32), theirs[name].view(torch.int32)), name
    sums = [read_digest(checkpoints.Checkpoint(path, step)) for path in (saved, loaded)]
    assert sums[0] == sums[1] is not None


def samples(folder: Path) -> dict[int, list[int]]:
    """Return what all ranks together were given in each step."""
    found: dict[int, list[int]] = {}
    for file in folder.glob("samples.*"):
        for line in file.read_text().splitlines():
            step, rows = json.loads(line)
            found[step] = sorted(found.get(step, []) + rows)
    return found


@pytest.mark.parametrize("distributed", ["true", "false"])
def test_there_and_back(
    server: ForkServer,
    documents: Path,  # noqa: F811
    tmp_path: Path,
    distributed: str,
) -> None:
    def run(folder: Path, steps: int, ranks: int, layout: list[str]) -> World:
        overrides = [*FASTEST, f"path={documents}", "model.num_layers=4"]
        overrides += [f"parallel.distributed_optimizer={distributed}", "checkpoint.interval=2"]
        overrides += [f"train.max_steps={steps}", "optim.schedule.kind=constant", *layout]
        prelude = f"from pathlib import Path\nFOLDER = Path({str(folder)!r})\n{OBSERVED}"
        return server.start(folder / "run", overrides, ranks, prelude=prelude)

    def trained(*args: Any) -> None:
        world = run(*args)
        assert set(world.finish().values()) == {0}, world.outputs()

    whole, begun = tmp_path / "whole", tmp_path / "begun"
    for folder, steps in ((whole, 6), (begun, 2)):
        folder.mkdir()
        trained(folder, steps, 4, [])
    expected = samples(whole)
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    for name, (ranks, layout) in TARGETS.items():
        folder = shutil.copytree(begun, tmp_path / name)
        trained(folder, 4, ranks, layout)
        assert_loaded_as_saved(folder, folder / "run", 2)
        trained(folder, 6, 4, [])
        assert_loaded_as_saved(folder, folder / "run", 4)
        assert samples(folder) == expected

    damaged = shutil.copytree(begun, tmp_path / "damaged")
    found = checkpoints.find(damaged / "run")
    tensor = flip_a_bit_of(found, "state.exp_avg_sq.")
    assert list(checkpoints.faults(found, "hash")) == []
    for ranks, layout in TARGETS.values():
        world = run(damaged, 4, ranks, layout)
        assert set(world.finish().values()) == {EXIT_BAD_INPUT}, world.outputs()
        assert f"{tensor} is not what was saved" in world.outputs()
