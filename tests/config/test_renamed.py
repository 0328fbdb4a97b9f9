"""Old names of fields: refused with the new one, read in old files, kept in the names of runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from loopcoder.config.compose import compose, load_config, save_config
from loopcoder.config.fields import FieldAt, leaves
from loopcoder.config.identity import config_hash, resolve_run_dir
from loopcoder.config.renamed import (
    FIELDS,
    first_names,
    new_name,
    translate,
    translate_manifest,
)
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem

OLD_CONFIG = Path(__file__).with_name("config_3b7e4bd.yaml")
"""Of a run of commit 3b7e4bd, but for its cache_dir; its folder was runs/plt_tiny-r2-b9c6bd6e4d."""


def problems_of(*overrides: str, config_dir: Path | None = None) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        compose(overrides, config_dir)
    return caught.value.problems


def old_and_new_leaves() -> dict[str, str]:
    found = {}
    for old, new in FIELDS.items():
        at = FieldAt(Config).at(new.split("."))
        assert at is not None, f"{new} is no field"
        below = [key for key, _ in leaves(at, ".")] if at.sections else [""]
        found |= {old + rest: new + rest for rest in below}
    return found


def test_an_old_name_is_never_given_to_another_field() -> None:
    assert not [old for old in FIELDS if FieldAt(Config).at(old.split(".")) is not None]


def test_every_old_spelling_names_the_new_one_with_the_value() -> None:
    names = old_and_new_leaves()
    assert len(names) > 80
    problems = problems_of(*(f"{old}=17" for old in names), "model.num_loops=0")
    found = {p.fact: p for p in problems}
    assert len(found) == len(names) + 1 and "model.num_loops=0" in found
    for old, new in names.items():
        assert found[f"{old}=17"].fix == f"{new}=17"
        assert found[f"{old}=17"].why == f"{old} is now {new}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("data.filters.enabled=false", "data.build.filters.enabled=false"),
        ("data.language_model=~/model.bin", "data.build.language_classifier=~/model.bin"),
        ("data.tokenizer=/a/b c/tokenizer.json", "data.build.tokenizer=/a/b c/tokenizer.json"),
        ("data.sources.0.max_documents=5", "data.build.sources.0.max_documents=5"),
        ('data.sources=[{kind:files,path:"~/a b"}]',
         'data.build.sources=[{kind:files,path:"~/a b"}]'),
        ("data.epochs={text:1,code:2.5}", "data.build.epochs={text:1,code:2.5}"),
    ],
)  # fmt: skip
def test_the_fix_can_be_given(before: str, after: str) -> None:
    (problem,) = problems_of(before)
    assert (problem.fact, shlex.split(problem.fix)) == (before, [after])
    compose([after])


def test_a_removal_is_translated_too() -> None:
    (problem,) = problems_of("~data.executor.options.partition")
    assert problem.fact == "~data.executor.options.partition"
    assert problem.fix == "~data.build.executor.options.partition"


def test_old_names_in_presets_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        "defaults: [_base, _self_]\nname: mine\nshares: published\n"
        "sources: [{kind: files, path: /d}]\nfilters: {min_words: 3}\n"
    )
    found = {p.fix for p in problems_of("data=mine", "seed=-1", config_dir=tmp_path)}
    assert found == {
        "data.build.shares=published",
        "'data.build.sources=[{kind:files,path:/d}]'",
        "'data.build.filters={min_words:3}'",
        "seed=0",
    }


def test_a_config_of_3b7e4bd_is_read_and_keeps_its_name(tmp_path: Path) -> None:
    config = load_config(OLD_CONFIG)
    assert config.data.build.tokenizer_vocab_size == 2048
    assert config.data.build.sources[0].kind == "sample"
    assert config.data.build.filters.linguist_generated == "auto"
    assert config_hash(config) == "b9c6bd6e4d"
    assert resolve_run_dir(config, config) == Path("runs/plt_tiny-r2-b9c6bd6e4d")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


AS_1B_WAS = [
    "model.init_std=0.02",
    "model.embedding_init_std=null",
    "model.head_init_std=null",
    "model.emb_scale=0.707",
    "model.hidden_scale=0.053",
    "model.gate_bias_init=0",
    "optim.lr=4e-4",
    "optim.min_lr=4e-5",
    "optim.base_hidden_size=null",
    "optim.base_num_layers=null",
    "optim.embedding_lr_scale=1",
    "optim.head_lr_scale=1",
    "optim.vocabulary_warmup_steps=0",
    "data.build.tokenizer_vocab_size=4096",
]
"""Initialisation and rates that plt_1b had before docs/recipes.md."""


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "cc8f20c8a9"),
        (["model=plt_7b", "data=packages"], "3f52aa05a9"),
        (["data=files", "path=[a,b]", "data.mixture={text:1,code:3}"], "ae4af538c6"),
        (["data=hf", "path=x", "data.stages=[{until:1000,mixture:{code:1}},{}]"], "9886551410"),
        (["experiment=sample_1b_100steps", *AS_1B_WAS], "aa184e7b41"),
        (["train.batch_ramp={start:8,increment:8,samples:64}", "checkpoint.init_from=/x"],
         "750761e3c8"),
        (["data=corpus", "path=/c", "parallel=tp2_sp", "seed=7"], "677b839849"),
    ],
)  # fmt: skip
def test_runs_have_the_names_of_3b7e4bd(overrides: list[str], name: str) -> None:
    assert config_hash(compose(overrides)) == name


def test_the_table_leads_there_and_back() -> None:
    old = yaml.safe_load(OLD_CONFIG.read_text())
    new = translate(old)
    assert new != old and first_names(new) == old
    assert translate(new) == new
    assert new_name("data.seq_length") is None and new_name("data.filtersx") is None


def test_what_is_no_config_is_not_changed() -> None:
    for plain in ({}, {"data": None}, {"data": {}}, {"data": [1]}, {"model": {"data.sources": 1}}):
        assert translate(plain) == plain


def test_manifests_are_translated_wherever_the_key_stands() -> None:
    old = {"plan": {"languages": [{"side": "text", "tokens": 3}]}, "sides": {"text": {}}}
    new = {"plan": {"languages": [{"domain": "text", "tokens": 3}]}, "domains": {"text": {}}}
    assert translate_manifest(old) == new == translate_manifest(new)
