"""The numbers that follow from the size of a model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from loopcoder.config.compose import compose, load_config, save_config
from loopcoder.config.identity import config_hash
from loopcoder.errors import InputError
from loopcoder.model.flops import block_parameters
from loopcoder.optim.schedule import warmup_steps

SIZES = {"plt_20m": 20.45e6, "plt_100m": 97.5e6, "plt_300m": 304.7e6, "plt_1b": 1027.6e6}


@pytest.mark.parametrize(("preset", "size"), SIZES.items())
def test_a_preset_has_its_size_and_twenty_tokens_for_each_parameter(preset, size):
    config = compose([f"model={preset}"])
    parameters = config.model.num_layers * block_parameters(config.model)
    assert parameters == pytest.approx(size, rel=1e-3)
    assert config.train.tokens == 20 * parameters
    per_step = config.train.global_batch_size * config.data.seq_length
    assert 0 <= config.train.max_steps * per_step - config.train.tokens < per_step


def test_the_numbers_of_every_preset():
    """Worked out by hand: batch 65536 * (tokens / 4e8)^0.383 as a power of two, rate of two
    loops 0.85e-3 * sqrt(tokens per step / 8192), warm-up 5% rounded up, twenty evaluations."""
    found = {}
    for preset in SIZES:
        config = compose([f"model={preset}"])
        found[preset] = (
            config.train.global_batch_size * config.data.seq_length,
            config.train.max_steps,
            config.optim.lr,
            warmup_steps(config.optim, config.train.max_steps),
            config.eval.interval,
            config.model.init_std,
        )
    assert found == {
        "plt_20m": (65536, 6240, 2.4e-3, 312, 200, 0.028),
        "plt_100m": (131072, 14880, 3.4e-3, 744, 500, 0.023),
        "plt_300m": (262144, 23250, 4.8e-3, 1163, 1000, 0.018),
        "plt_1b": (262144, 78400, 4.8e-3, 3920, 2000, 0.014),
    }


@pytest.mark.parametrize("preset", SIZES)
def test_loops_share_everything_but_their_number_and_two_numbers_of_one(preset):
    """R = 1 has twice the rate of all others and no warm-up of embedding and head beyond the
    schedule's, as measured; the sequences of one pass may differ, which changes no number."""
    configs = [compose([f"model={preset}", f"model.num_loops={r}"]) for r in (1, 2, 3, 4)]
    one, two = configs[0].optim, configs[1].optim
    assert one.lr / two.lr == pytest.approx(2, rel=0.03)  # both have two digits
    assert (one.vocabulary_warmup_steps, two.vocabulary_warmup_steps) == (1, 200)
    same = dict(lr=two.lr, min_lr=two.min_lr, vocabulary_warmup_steps=200)
    assert replace(one, **same) == two
    for config in configs:
        assert config.optim == (one if config.model.num_loops == 1 else two)
        assert config.eval == configs[0].eval
        assert config.train.tokens == configs[0].train.tokens
        assert config.train.max_steps == configs[0].train.max_steps
        assert config.train.global_batch_size % config.train.micro_batch_size == 0


def test_what_is_given_changes_what_depends_on_it():
    tokens = compose(["model=plt_20m", "train.tokens=33000000"])
    assert tokens.train.global_batch_size * 2048 == 32768
    assert tokens.train.max_steps == math.ceil(33_000_000 / 32768)
    assert tokens.optim.lr == 1.7e-3

    batch = compose(["model=plt_20m", "train.global_batch_size=8"])
    assert batch.optim.lr == pytest.approx(1.2e-3)
    assert batch.train.max_steps == math.ceil(batch.train.tokens / 16384)

    rate = compose(["model=plt_20m", "optim.lr=1e-3"])
    assert (rate.optim.lr, rate.optim.min_lr) == (1e-3, 1e-4)

    steps = compose(["model=plt_20m", "train.max_steps=5"])
    assert (warmup_steps(steps.optim, 5), steps.eval.interval) == (1, 10)


@pytest.mark.parametrize(
    ("override", "steps", "lr"),
    [
        ("train.max_steps=1008", 1, 4.8e-3),  # 5%: 51 steps
        ("train.max_steps=980", 200, 2.4e-3),  # 49
        ("optim.schedule.warmup_steps=10", 200, 2.4e-3),
        ("optim.schedule.warmup_steps=50", 1, 4.8e-3),
        ("optim.vocabulary_warmup_steps=7", 7, 4.8e-3),
    ],
)
def test_one_loop_has_the_recipe_of_many_where_the_schedule_is_too_short(override, steps, lr):
    config = compose(["model=plt_20m", "model.num_loops=1", override])
    assert (config.optim.vocabulary_warmup_steps, config.optim.lr) == (steps, lr)


def test_the_batch_holds_the_mixture_exactly():
    config = compose(["model=plt_20m", "data.mixture={text:2,code:3}"])
    assert config.train.global_batch_size == 30  # the multiple of 5 next to 32


def test_a_mixture_that_needs_a_huge_batch_is_left_to_the_check():
    config = compose(["model=plt_20m", "data.mixture={text:0.333,code:0.667}"])
    assert config.train.global_batch_size == 32


@pytest.mark.parametrize("preset", ["plt_tiny", "plt_7b", "plt_20m"])
def test_tokens_make_the_steps_of_every_preset(preset):
    config = compose([f"model={preset}", "train.tokens=3000000"])
    per_step = config.train.global_batch_size * config.data.seq_length
    assert config.train.max_steps == math.ceil(3_000_000 / per_step)
    unchanged = compose([f"model={preset}", "train.tokens=null"])
    assert unchanged.train.max_steps == compose([f"model={preset}"]).train.max_steps


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_processes_that_are_given_share_the_batch(copies):
    """The fix that a check names must not lead to the next."""
    given = [f"parallel.nproc_per_node={copies}", "train.global_batch_size=24"]
    config = compose(["model=plt_20m", "train.tokens=100000", *given])
    assert config.train.global_batch_size % (config.train.micro_batch_size * copies) == 0


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.tokens=0", "train.tokens=0"),
        ("train.tokens=-1", "train.tokens=-1"),
        ("train.tokens=x", "train.tokens=x"),
        ("model.num_layers=0", "model.num_layers=0"),
        ("data.seq_length=0", "data.seq_length=0"),
        ("train.global_batch_size=0", "train.global_batch_size=0"),
        ("data.mixture={text:0,code:1}", "data.mixture.text=0"),
    ],
)
def test_only_what_was_typed_is_wrong(override, named):
    with pytest.raises(InputError) as error:
        compose(["model=plt_20m", override])
    assert [p.fact for p in error.value.problems] == [named]


def test_a_number_beyond_everything_ends_at_once():
    with pytest.raises(InputError, match=r"train\.tokens=1e"):
        compose(["model=plt_20m", "train.tokens=1e30"])


def test_the_plan_is_written_as_numbers_and_renames_no_run(tmp_path):
    config = compose(["model=plt_20m"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    other = compose(
        [
            "model=plt_20m",
            "train.tokens=1000",
            f"train.max_steps={config.train.max_steps}",
            f"train.global_batch_size={config.train.global_batch_size}",
            f"train.micro_batch_size={config.train.micro_batch_size}",
        ]
    )
    assert config_hash(other) == config_hash(config)
