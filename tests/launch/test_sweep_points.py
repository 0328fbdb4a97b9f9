"""The points of a sweep: which there are, what they are called, what they have alike."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from launch.sweep.places import gpus_of
from launch.sweep.points import folder_name, points
from loopcoder.backends import Backends
from loopcoder.errors import InputError
from loopcoder.plan.cost import flops_per_step

CPU = Backends()


def labels(*overrides: str) -> list[str]:
    return [point.label for point in points(overrides, None, CPU)[1]]


def test_choices_multiply_in_order() -> None:
    assert labels("model.num_loops=1,2", "train.max_steps=9", "seed=range(5,7)") == [
        "model.num_loops=1 seed=5",
        "model.num_loops=1 seed=6",
        "model.num_loops=2 seed=5",
        "model.num_loops=2 seed=6",
    ]


def test_a_glob_selects_presets() -> None:
    assert labels("optim=glob(adam_*)") == ["optim=adam_cosine", "optim=adam_wsd"]


VARIANTS = ["loops_1", "loops_2", "loops_3", "loops_4", "no_shift", "own_kv", "dense_2x"]


def test_a_preset_names_axes() -> None:
    assert labels("experiment=loop_sweep") == [
        f"seed={seed} variant={variant}" for seed in (1, 2, 3) for variant in VARIANTS
    ]


def test_the_command_line_replaces_an_axis_in_its_place() -> None:
    assert labels("experiment=loop_sweep", "variant=loops_1,own_kv", "seed=7,5") == [
        "seed=7 variant=loops_1",
        "seed=7 variant=own_kv",
        "seed=5 variant=loops_1",
        "seed=5 variant=own_kv",
    ]
    assert labels("experiment=loop_sweep", "seed=9") == [f"variant={name}" for name in VARIANTS]
    assert labels("seed=1", "seed=2,3") == ["seed=2", "seed=3"]


@pytest.mark.dist_full
def test_the_points_of_a_seed_differ_in_the_model_alone() -> None:
    found = points(["experiment=loop_sweep", "seed=4", "model.num_layers=3"], None, CPU)[1]
    models = [p.config.model for p in found]
    assert [(m.num_loops, m.num_layers, m.shift, m.kv_sharing) for m in models] == [
        (1, 3, True, "first"),
        (2, 3, True, "first"),
        (3, 3, True, "first"),
        (4, 3, True, "first"),
        (2, 3, False, "first"),
        (2, 3, True, "own"),
        (1, 6, True, "first"),
    ]
    first = found[0].config
    same = dict(model=first.model, run_dir=first.run_dir)
    assert all(replace(p.config, **same) == first for p in found)
    assert found[0].config.seed == 4


def test_runs_of_several_seeds_share_a_point() -> None:
    found = points(["seed=1,2", "model.num_loops=1,2"], None, CPU)[1]
    assert [p.without_seed for p in found] == ["model.num_loops=1", "model.num_loops=2"] * 2
    assert {p.without_seed for p in points(["seed=1,2"], None, CPU)[1]} == {"seed=1,2"}


@pytest.mark.dist_full
def test_further_seeds_leave_the_folders_of_the_first_ones() -> None:
    base = ["experiment=loop_sweep", "variant=loops_1,own_kv", "run_dir=x"]
    few, more = (points([*base, f"seed={s}"], None, CPU)[1] for s in ("1,2", "1,2,3"))
    assert [p.run_dir for p in more[: len(few)]] == [p.run_dir for p in few]


@pytest.mark.dist_full
def test_axes_of_a_preset_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra: {sweeper: {params: {optim.lr: '1e-3,2e-3', seed: 5}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    folder, found = points(["experiment=mine"], tmp_path, CPU)
    assert [(p.label, p.config.seed) for p in found] == [
        ("optim.lr=0.001", 5),
        ("optim.lr=0.002", 5),
    ]
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("2e-3", "3e-3"))
    assert points(["experiment=mine"], tmp_path, CPU)[0] != folder
    with pytest.raises(InputError, match="experiment=loop_sweep is a sweep over seed and variant"):
        points(["experiment=loop_sweep,plain_baseline"], None, CPU)  # whose axes would they be?


@pytest.mark.parametrize("overrides", [[], ["seed=3"], ["model.num_loops=[1,2]"]])
def test_a_sweep_of_nothing_is_refused(overrides: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        points(overrides, None, CPU)
    assert "no field has several values" in caught.value.problems[-1].fact


def test_points_have_their_overrides_config_and_folder(tmp_path: Path) -> None:
    folder, found = points(["seed=3", "model.num_loops=1,2", f"run_dir={tmp_path}/s"], None, CPU)
    assert folder == tmp_path / "s"
    assert [p.run_dir.name for p in found] == ["00_num_loops=1", "01_num_loops=2"]
    assert found[1].overrides == [
        "seed=3",
        "model.num_loops=2",
        f'run_dir="{folder}/01_num_loops=2"',
    ]
    assert (found[1].config.seed, found[1].config.model.num_loops) == (3, 2)


@pytest.mark.dist_full
def test_the_folder_is_named_by_the_command() -> None:
    assert points(["seed=1,2"], None, CPU)[0] == points(["seed=1,2"], None, CPU)[0]
    assert points(["seed=1,2"], None, CPU)[0] != points(["seed=1,3"], None, CPU)[0]


@pytest.mark.dist_full
def test_a_sweep_has_a_name_too() -> None:
    plain, _ = points(["seed=1,2"], None, CPU)
    for name in ("widths", "1.10", "007"):
        folder, found = points(["seed=1,2", f"name={name}"], None, CPU)
        assert folder == plain.with_name(f"{name}-{plain.name}")
        assert [p.label for p in found] == ["seed=1", "seed=2"]
    with pytest.raises(InputError, match="name=a/b"):
        points(["seed=1,2", "name=a/b"], None, CPU)
    assert points(["seed=1,2", "name=widths", "run_dir=x"], None, CPU)[0] == Path("x")
    _, found = points(["name=a,b"], None, CPU)
    assert [p.config.name for p in found] == ["a", "b"]


def test_every_point_is_checked_before_any_starts() -> None:
    with pytest.raises(InputError) as caught:
        points(["model.num_loops=0,1", "train.micro_batch_size=3,4"], None, CPU)
    facts = [p.fact for p in caught.value.problems]
    assert len(facts) == 3
    assert facts[0].startswith("[model.num_loops=0 train.micro_batch_size=3] model.num_loops=0")
    assert facts[2].startswith("[model.num_loops=1 train.micro_batch_size=3] train.global_batch")
    with pytest.raises(InputError, match="interval"):
        points(["optim.lr=interval(0,1)"], None, CPU)
    with pytest.raises(InputError, match="selects nothing"):
        points(["model=glob(gpt_*)"], None, CPU)


def test_points_have_names_that_a_file_system_takes() -> None:
    values = ["a/b", "../up", "\u6f22" * 120, "x" * 300]
    for value in values:
        name = folder_name(f"path={value} seed=1")
        assert "/" not in name and len(name.encode()) <= 80
    folder, found = points([f"name={'n' * 250}", "seed=1,2"], None, CPU)
    assert len(folder.name) < 200 and [p.label for p in found] == ["seed=1", "seed=2"]


def test_each_point_copies_to_a_folder_of_its_own() -> None:
    found = points(["seed=1,2", "checkpoint.store=s3://bucket/sweep/"], None, CPU)[1]
    stores = [point.config.checkpoint.store for point in found]
    assert stores == [f"s3://bucket/sweep/{point.run_dir.name}" for point in found]
    assert len({*stores}) == 2


@pytest.mark.dist_full
def test_points_have_as_many_flops_as_the_first(rng: random.Random) -> None:
    steps = rng.randint(100, 10_000)
    base = ["variant=loops_2,loops_1,dense_2x,loops_4", f"train.max_steps={steps}"]
    same = points(base, None, CPU)[1]
    assert {p.config.train.max_steps for p in same} == {steps}
    folder, found = points(base, None, CPU, "flops")
    assert folder != points(base, None, CPU)[0]
    total = [p.config.train.max_steps * flops_per_step(p.config) for p in found]
    assert found[0].config.train.max_steps == steps
    for point, flops in zip(found, total, strict=True):
        assert abs(flops - total[0]) <= flops_per_step(point.config) / 2
    assert len({p.config.train.max_steps for p in found}) > 2
    sizes = "train.global_batch_size=4,8"
    found = points([sizes, f"train.max_steps={2 * steps}"], None, CPU, "tokens")[1]
    assert [p.config.train.max_steps for p in found] == [2 * steps, steps]
    stages = "data.stages=[{until:2000},{seq_length:32}]"
    for wrong in (["train.max_steps=3,4"], ["seed=1,2", "data.seq_length=64", stages]):
        with pytest.raises(InputError, match=r"sweep\.match=flops"):
            points(wrong, None, CPU, "flops")


def test_a_point_takes_what_its_layout_needs() -> None:
    """And not all GPUs, as `train` by itself does."""
    asked = ["parallel=single", "parallel=tp2_sp_pp2", "parallel.nproc_per_node=2"]
    eight = replace(CPU, gpu_count=8, gpu_name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0))
    base = ["seed=1,2", "precision=bf16", "train.global_batch_size=8", "train.micro_batch_size=1"]
    found = [points([*base, each], None, eight)[1][0].config for each in asked]
    assert [gpus_of(config.parallel) for config in found] == [1, 4, 2]
