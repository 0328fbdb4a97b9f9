"""Presets, overrides, the hash and the YAML file."""

import dataclasses
import random
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loopcoder.config import fields
from loopcoder.config.compose import (
    compose,
    conf_dir,
    group_options,
    load_config,
    save_config,
    sweep_axes,
    to_yaml,
)
from loopcoder.config.identity import config_hash
from loopcoder.config.schema import Config, ModelConfig
from loopcoder.errors import InputError, Problem


def problems_of(*overrides: str) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        compose(overrides)
    assert caught.value.exit_code == 3
    return caught.value.problems


def parameters(m: ModelConfig) -> int:
    """Count the parameters of a PLT with hidden gates by the shapes of the released checkpoint."""
    assert m.vocab_size is not None
    q, kv = m.num_attention_heads * m.head_dim, m.num_kv_heads * m.head_dim
    attention = m.hidden_size * (q + 2 * kv) + q * m.hidden_size
    gate = m.num_attention_heads * (m.hidden_size + 1) + m.hidden_size
    layer = attention + 3 * m.hidden_size * m.ffn_hidden_size + 2 * m.hidden_size
    layer += gate if m.has_gates else 0
    return m.num_layers * layer + m.hidden_size + 2 * m.vocab_size * m.hidden_size


def test_plt_7b_is_the_released_model() -> None:
    model = compose(["model=plt_7b"]).model
    assert parameters(model) == 7_615_749_680
    gates = parameters(model) - parameters(replace(model, num_loops=1))
    assert gates == 2_939_440
    assert (model.window, model.a, model.b, model.norm_eps) == (64, 0.707, 0.053, 1e-5)


def test_plt_1b_has_about_a_billion_parameters_without_embeddings() -> None:
    model = replace(compose(["model=plt_1b"]).model, vocab_size=128)
    assert parameters(model) - 2 * 128 * model.hidden_size == pytest.approx(1e9, rel=0.05)


def test_every_preset_of_every_group_composes() -> None:
    options = group_options([conf_dir()])
    assert {"model", "data", "optim", "parallel", "precision", "experiment"} <= options.keys()
    for n in range(max(map(len, options.values()))):
        chosen = [f"{group}={names[n % len(names)]}" for group, names in options.items()]
        compose([*chosen, "seed=1"])  # an axis of loop_sweep


def test_one_run_of_a_sweep_needs_a_value_for_every_axis() -> None:
    axes = sweep_axes(["experiment=loop_sweep"])
    assert [axis.partition("=")[0] for axis in axes] == ["seed", "variant"]
    assert sweep_axes(["experiment=plain_baseline", "seed=1,2"]) == []
    (problem,) = problems_of("experiment=loop_sweep", "model.num_loops=3")
    assert problem.fact == "experiment=loop_sweep is a sweep over seed and variant"
    assert "-m experiment=loop_sweep model.num_loops=3, or" in problem.fix
    assert problem.fix.endswith("add seed=1 variant=loops_1")
    config = compose(["experiment=loop_sweep", "variant=own_kv", "seed=8"])
    assert (config.model.kv_sharing, config.seed) == ("own", 8)


def test_a_variant_comes_after_the_experiment_and_before_the_command_line() -> None:
    overrides = ["experiment=plain_baseline", "variant=loops_3"]
    assert compose(overrides).model.num_loops == 3
    assert compose([*overrides, "model.num_loops=2"]).model.num_loops == 2
    both = compose(["variant=[no_shift,loops_4]"]).model
    assert (both.shift, both.num_loops) == (False, 4)
    for none in ("variant=null", "~variant", "experiment=null"):
        assert compose([none]) == compose([])
    (problem,) = problems_of("variant=loops_5")
    assert problem.fix.startswith("variant=loops_")


def test_all_mistakes_are_reported_at_once() -> None:
    found = {
        p.fact: p.fix
        for p in problems_of(
            "model.num_loops=0",
            "num_loops=3",
            "model.gate=hiden",
            "model=plt_7",
            "checkpoint=/some/dir",
            "train=5",
            "train.max_stepz=3",
            "train.micro_batch_size=many",
            "optim.lr=inf",
            "data.build.sources=[{kind:filez}]",
            "seed=1,2",
            "nonsense",
            "hydra.run.dir=x",
            "~model.name",
        )
    }
    assert found["model.num_loops=0"] == "model.num_loops=1"
    assert found["num_loops=3"] == "model.num_loops=3"
    assert found["model.gate=hiden"] == "model.gate=hidden"
    assert found["model=plt_7"] == "model=plt_7b"
    assert found["checkpoint=/some/dir"] == "checkpoint.init_from=/some/dir"
    assert "train.max_steps" in found["train=5"]
    assert found["train.max_stepz=3"] == "train.max_steps=3"
    assert found["train.micro_batch_size=many"] == "train.micro_batch_size=4"
    assert found["optim.lr=inf"] == "optim.lr=0.006"
    assert found["data.build.sources.0.kind=filez"] == "data.build.sources.0.kind=files"
    assert found["seed=1,2"] == "loopcoder train -m seed=1,2"
    assert {"cannot read 'nonsense'", "hydra.run.dir=x", "~model.name"} <= found.keys()
    assert len(found) == 14


def test_the_reason_names_the_field_and_the_choices() -> None:
    (problem,) = problems_of("precision=fp9")
    assert "fp8_tensorwise" in problem.why
    (problem,) = problems_of("model.num_loops=0")
    assert "at least 1" in problem.why and "number of passes" in problem.why


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("modle=plt_1b", "model=plt_1b"),
        ("experimnt=loop_sweep", "experiment=loop_sweep"),
        ("precison=bf16", "precision=bf16"),
        ("variannt=no_shift", "variant=no_shift"),
    ],
)
def test_a_group_that_is_misspelt(override: str, fix: str) -> None:
    (problem,) = problems_of(override)
    assert problem.fix == fix


def test_a_field_that_is_missing_inside_a_section() -> None:
    problems = problems_of("train.batch_ramp.start=4")
    assert [p.fact for p in problems] == [
        "train.batch_ramp.increment has no value",
        "train.batch_ramp.samples has no value",
    ]


def test_a_mapping_is_replaced_and_a_section_is_merged() -> None:
    config = compose(["data.mixture={code:1}", "optim.schedule={kind:wsd}"])
    assert config.data.mixture == {"code": 1.0}
    assert config.optim.schedule.kind == "wsd"
    assert config.optim.schedule.warmup_fraction == 0.05
    assert compose(["~data.mixture.text"]).data.mixture == {"code": 1.0}
    assert compose(["data.mixture.code=3"]).data.mixture == {"text": 1.0, "code": 3.0}


def test_path_is_short_for_the_path_of_the_data() -> None:
    data = compose(["data=files", "path=/a/b"]).data
    assert data.path == "/a/b"
    assert [s.path for s in data.build.sources] == ["/a/b"]
    assert compose(["data=hf", "path=[a,b]"]).data.build.sources[0].path == ["a", "b"]
    assert compose(["data=corpus", "path=2024"]).data.path == "2024"


def test_cache_dir_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPCODER_CACHE", "/somewhere")
    assert compose([]).data.build.cache_dir == "/somewhere"
    for data in ("sample", "files", "hf", "packages"):
        monkeypatch.setenv("LOOPCODER_CACHE", "")  # as good as unset, not the current folder
        assert compose([f"data={data}"]).data.build.cache_dir == "~/.cache/loopcoder"
    monkeypatch.delenv("LOOPCODER_CACHE")
    assert compose([]).data.build.cache_dir == "~/.cache/loopcoder"


def test_the_command_line_wins_over_an_experiment() -> None:
    config = compose(["model=plt_tiny", "experiment=sample_1b_100steps", "train.max_steps=7"])
    assert (config.model.name, config.train.max_steps) == ("plt_tiny", 7)
    assert config.precision.name == "bf16"
    both = compose(["experiment=[sample_1b_100steps,plain_baseline]"])
    assert (both.model.name, both.model.num_loops) == ("plt_1b", 1)


def test_presets_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\nmodel:\n  num_loops: 4\n")
    assert compose(["experiment=mine"], tmp_path).model.num_loops == 4
    assert "mine" in str(problems_of("experiment=mine")[0])[:20]

    file.write_text("# @package _global_\nmodel:\n  num_lops: 4\nlogging:\n  wandb: of\n")
    with pytest.raises(InputError) as caught:
        compose(["experiment=mine"], tmp_path)
    assert [p.fix for p in caught.value.problems] == ["model.num_loops=4", "logging.wandb=off"]

    for group in ("experiment", "variant"):
        (tmp_path / group).mkdir(exist_ok=True)
        # without its first line it is a section of that name
        (tmp_path / group / "mine.yaml").write_text("model:\n  num_loops: 4\n")
        with pytest.raises(InputError) as caught:
            compose([f"{group}=mine"], tmp_path)
        assert "# @package _global_" in caught.value.problems[0].fix

    file.write_text("model: [")
    with pytest.raises(InputError, match="do not compose"):
        compose(["experiment=mine"], tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        compose([], tmp_path / "absent")


@pytest.mark.parametrize("name", ["my [presets]", "a, b=c", "it's {1: 'x'}", 'say "ä"'])
def test_presets_of_the_user_in_any_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    assert compose(["experiment=mine"], folder.parent).seed == 5


def test_a_preset_of_the_user_that_ours_would_hide_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "optim" / "adam_wsd.yaml"
    file.parent.mkdir()
    file.write_text("lr: 1.0\n")
    with pytest.raises(InputError, match=r"is found first.*\n.*fix: rename.*optim=my_adam_wsd"):
        compose([], tmp_path)
    file.write_bytes((conf_dir() / "optim" / "adam_wsd.yaml").read_bytes())  # a copy is no mistake
    assert compose(["optim=adam_wsd"], tmp_path) == compose(["optim=adam_wsd"])


def test_the_presets_in_the_readme_work(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(r"^```\n(mkdir -p mine.*?)^```", readme, re.M | re.S)
    *files, command = block.strip().splitlines()
    subprocess.run(["bash", "-e", "-c", "\n".join(files)], cwd=tmp_path, check=True)
    words = shlex.split(command, comments=True)
    assert words[:4] == ["loopcoder", "train", "--config-dir", "mine"]
    mine = tmp_path / "mine"
    config = compose(words[4:], mine)
    assert (config.model.name, config.model.hidden_size) == ("mini", 192)
    assert (config.model.num_layers, config.train.max_steps) == (2, 300)
    # what README says of a model without a recipe
    plain = compose(["model=mini"], mine)
    assert (plain.optim.lr, plain.data.seq_length) == (4e-4, 256)
    assert (plain.train.global_batch_size, plain.train.max_steps) == (16, 400)
    recipe = mine / "recipe" / "mini.yaml"
    recipe.parent.mkdir()
    recipe.write_text("# @package _global_\ndefaults: [plt_tiny]\n")
    tiny = compose(["model=mini"], mine)
    assert (tiny.optim.lr, tiny.train.max_steps) == (6e-3, 2000)


def test_yaml_round_trip_is_exact(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "config.yaml"
    for _ in range(5):
        config = compose(
            [
                f"optim.lr={rng.random() + 1e-9!r}",
                f"optim.eps={10 ** rng.uniform(-20, -3)!r}",
                f"data.mixture={{text:{rng.random() + 0.1!r},code:1}}",
                f"data.stages=[{{until:{rng.randrange(1, 10**13)},seq_length:64}},{{}}]",
                f"seed={rng.randrange(2**31)}",
                "run_dir='off: #1'",
                "data=files",
                f"path=[{rng.random()},'null',a]",
            ]
        )
        save_config(config, path)
        assert load_config(path) == config
        assert config_hash(load_config(path)) == config_hash(config)


def test_a_damaged_config_file_names_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose([])).replace("num_loops: 2", "num_loops: -1\n  extra: 1"))
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert {p.fact for p in caught.value.problems} == {"model.num_loops=-1", "model.extra=1"}
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")


def leaves(section: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_a_wrong_value_of_any_field_is_an_error_with_its_name(seed: int) -> None:
    rng = random.Random(seed)
    keys = sorted(leaves(dataclasses.asdict(compose([]))))
    for key in [*rng.sample(keys, 25), "data.build.shares", "data.build.epochs", "data.mixture"]:
        value = rng.choice(["foo", "-3", "{a:{b:1}}", "[1,{c:2}]"])
        try:
            compose([f"{key}={value}"])
        except InputError as error:
            for problem in error.problems:
                assert problem.fact.startswith(key), (key, value, problem)
                name = problem.fact.split("=")[0].split(" ")[0]
                assert not re.search(r"[\[\],']|constrained", name), (key, value, problem)


@pytest.mark.parametrize(
    ("override", "why", "fix"),
    [
        ("data.build.shares=foo", "supply, published or a mapping",
         "data.build.shares=supply"),
        ("data.build.epochs=0", "greater than 0", "data.build.epochs=1"),
        ("data.mixture=3", "written {text:1,code:1}", "'data.mixture={text:1,code:1}'"),
        ("data.build.near_dedup.enabled=7", "true or false or one of auto",
         "data.build.near_dedup.enabled=auto"),
    ],
)  # fmt: skip
def test_fields_of_several_types_are_named_without_them(override: str, why: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        compose([override])
    (problem,) = caught.value.problems
    assert problem.fact == override
    assert why in problem.why
    assert problem.fix == fix


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.mixture=3", ["data.mixture={text:1,code:1}"]),
        ("data.mixtur={text:1,code:3}", ["data.mixture={text:1,code:3}"]),
        ("data.fim={rate:0}", ["data.build.fim={rate:0}"]),
        ("wandb_project='my runs'", ["logging.wandb_project=my runs"]),
        ("model.num_loop=3", ["model.num_loops=3"]),
    ],
)
def test_a_fix_may_be_typed_into_a_shell(override: str, words: list[str]) -> None:
    """Braces and spaces are quoted: a shell would make several words of them."""
    (problem,) = problems_of(override)
    assert shlex.split(problem.fix) == words
    bash = ["bash", "-c", f"printf '%s\\n' {problem.fix}"]
    shown = subprocess.run(bash, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == words
    compose(words)


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        ("eval.lengths=64", "eval.lengths=[64]"),
        ("eval.lengths=64,128", "eval.lengths=[64,128]"),
        ("profile.trace_steps=5", "profile.trace_steps=[5]"),
        ("profile.memory_steps=3,4", "profile.memory_steps=[3,4]"),
        (
            "data.build.decontaminate.benchmarks=humaneval",
            "data.build.decontaminate.benchmarks=[humaneval]",
        ),
        ("data.build.sources.0.packages=vim", "data.build.sources.0.packages=[vim]"),
        ("data.stages={seq_length:128}", "'data.stages=[{seq_length:128}]'"),
        ("data.build.sources={kind:sample}", "'data.build.sources=[{kind:sample}]'"),
        # what is wrong as an entry as well
        ("eval.lengths=0", "eval.lengths=null"),
        ("eval.lengths=short", "eval.lengths=null"),
        # a text or a list of them: each may be a run
    ],
)
def test_one_value_of_a_list_is_offered_in_brackets(asked: str, fix: str) -> None:
    (problem,) = problems_of(asked)
    assert problem.fix == fix
    if not fix.startswith("loopcoder"):
        compose([*shlex.split(fix)])


def test_what_a_choice_is_is_said_in_a_line() -> None:
    """Some fields go through their choices in a paragraph."""
    overrides = [
        f"{key}=no_such_choice"
        for key, at in fields.leaves(fields.FieldAt(Config))
        if at.choices and at.doc
    ]
    with pytest.raises(InputError) as caught:
        compose(overrides)
    whys = {p.fact.split("=")[0]: p.why for p in caught.value.problems}
    assert len(whys) > 20 and max(map(len, whys.values())) < 250
    assert whys["data.verify"].endswith("is compared with its manifest")
    assert whys["parallel.recompute"].endswith("or whole layers.")


def test_presets_are_composed_anew_when_a_file_changed_and_share_nothing(tmp_path: Path) -> None:
    preset = tmp_path / "model" / "mine.yaml"
    preset.parent.mkdir()

    def composed(layers: int, *overrides: str) -> ModelConfig:
        preset.write_text(f"defaults: [plt_tiny, _self_]\nnum_layers: {layers}\n")
        return compose(["model=mine", *overrides], tmp_path).model

    assert composed(3).num_layers == 3
    assert composed(3, "model.num_loops=3").num_loops == 3
    assert composed(3).num_loops == 2
    assert composed(4).num_layers == 4
