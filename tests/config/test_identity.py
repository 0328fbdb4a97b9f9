"""Which fields name a run and a corpus: what each says of itself, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from launch.sweep.points import points
from loopcoder.backends import Backends
from loopcoder.cli.arguments import Arguments, composed
from loopcoder.config.build import BuildConfig, SourceConfig
from loopcoder.config.compose import compose
from loopcoder.config.data import DataConfig, StageConfig
from loopcoder.config.fields import FieldAt, leaves
from loopcoder.config.identity import (
    as_folder,
    changes,
    config_hash,
    corpus_fields,
    resolve_run_dir,
)
from loopcoder.config.schema import Config
from loopcoder.config.types import STRICT, Changes, Effect
from loopcoder.errors import InputError

EVERYTHING = [
    "data=files", "path=/x", "data.stages=[{until:10,mixture:{text:1},corpora:[{path:/y}]},{}]",
    "data.corpora=[{path:/y}]", "data.skip=[{step:5,steps:3}]",
    "train.batch_ramp={start:8,increment:8,samples:64}",
]  # fmt: skip
SCHEMA = TypeAdapter(Config)
H100 = Backends(8, "NVIDIA H100", (9, 0), {"transformer_engine": "2.20"}, None, 80 * 2**30)


def all_leaves(at: FieldAt, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, FieldAt]]:
    """Yield every field that takes a value, those of a list's entries with the place 0."""
    for name, inner in at.fields.items():
        entry = inner.at([0])
        if inner.sections:
            yield from all_leaves(inner, (*path, name))
        elif entry is not None and entry.sections:
            yield from all_leaves(entry, (*path, name, 0))
        else:
            yield (*path, name), inner


def another(config: Config, path: tuple[str | int, ...], at: FieldAt, rng: random.Random) -> Config:
    """Return the config with another value of one field."""
    plain = dataclasses.asdict(config)
    values = [True, False, 1, 2, 3, 0.25, 0.75, "x", ["x"], [1], {"text": 2.0}, {7: 0.5}, None]
    values += [*at.choices, {"x": ["y"]}, {"x": "y"}]
    for value in rng.sample(values, len(values)):
        changed = copy.deepcopy(plain)
        section: Any = changed
        for part in path[:-1]:
            section = section[part]
        section[path[-1]] = value
        try:
            found = SCHEMA.validate_python(changed)
        except ValidationError:
            continue
        if found != config:
            return found
    raise AssertionError(f"no other value for {path}")


def test_every_field_changes_what_it_says(seed: int) -> None:
    rng = random.Random(seed)
    config = compose(EVERYTHING)
    run, corpus = config_hash(config), corpus_fields(config.data)
    fields = dict(all_leaves(FieldAt(Config)))
    assert len(fields) > 180
    seen: set[Effect] = set()
    for path, at in fields.items():
        assert at.changes.effect in get_args(Effect), path
        other = another(config, path, at, rng)
        assert (config_hash(other) != run) == (at.changes.effect != "nothing"), path
        assert (corpus_fields(other.data) != corpus) == (at.changes.effect == "corpus"), path
        assert bool(changes(config, other)) == (at.changes.effect != "nothing"), path
        seen.add(at.changes.effect)
    assert seen == set(get_args(Effect))


def test_a_field_answers_once_where_it_is_read() -> None:
    """A mark inside of a union or a list would be overlooked."""

    def buried(annotation: Any) -> bool:
        return any(isinstance(a, Changes) or buried(a) for a in get_args(annotation))

    sections = [DataConfig, StageConfig, BuildConfig, SourceConfig, Config]
    sections += [section for at in FieldAt(Config).fields.values() for section in at.sections]
    for section in sections:
        for name, info in section.__pydantic_fields__.items():  # type: ignore[attr-defined]
            assert not buried(info.annotation), (section, name)
            assert sum(isinstance(m, Changes) for m in info.metadata) <= 1, (section, name)


def test_the_answers_of_some_fields() -> None:
    effects = {key: at.changes.effect for key, at in leaves(FieldAt(Config))}
    assert effects["data.build.filters.min_words"] == effects["data.seq_length"] == "corpus"
    assert effects["data.build.executor.workers"] == effects["data.verify"] == "nothing"
    assert effects["logging.interval"] == effects["checkpoint.keep"] == "nothing"
    assert effects["checkpoint.init_from"] == effects["optim.lr"] == "numbers"


def test_what_changed_is_said_by_the_names_of_today() -> None:
    after = compose(["data.build.filters.min_words=7", "optim.lr=1e-3", "logging.interval=9"])
    assert changes(compose([]), after) == [
        "data.build.filters.min_words: 50 -> 7",
        "optim.lr: 0.006 -> 0.001",
    ]


def test_the_hash_names_the_run() -> None:
    config = compose([])
    assert len(config_hash(config)) == 10
    assert folder_of(config) == Path("runs") / f"plt_tiny-r2-{config_hash(config)}"
    assert folder_of(compose(["run_dir=~/x"])) == Path.home() / "x"
    named = compose(["name=baseline"])
    assert folder_of(named) == Path("runs") / f"baseline-{config_hash(config)}"


def folder_of(config: Config, machine: Config | None = None) -> Path:
    return resolve_run_dir(config, machine or config)


@pytest.mark.parametrize(
    "made",
    [
        ["model.kernels=stock", "precision=fp32", "model.layer_spec=torch"],
        ["model.kernels=cuda", "precision=bf16", "model.layer_spec=te"],
    ],
)
def test_another_machine_finds_the_same_folder(made: list[str]) -> None:
    """Kernels that were built, or an image with Transformer Engine, begin no new run."""
    assert folder_of(compose([]), compose(made)) == folder_of(compose([]))
    # what is asked for is another run
    assert folder_of(compose(made)) != folder_of(compose([]))


def test_a_sweep_is_found_on_another_machine() -> None:
    """The folder of the sweep, those of its points, and what its ledger calls them."""
    command = ["model.num_loops=1,2", "train.micro_batch_size=2"]
    (folder, plain), (other, rebuilt) = (points(command, None, b) for b in (Backends(), H100))
    assert folder == other
    assert plain[0].config.precision != rebuilt[0].config.precision
    assert [p.run_dir for p in plain] == [p.run_dir for p in rebuilt]
    assert [p.names[0] for p in plain] == [p.names[0] for p in rebuilt]


def test_the_command_line_finds_the_same_folder(monkeypatch: Any, tmp_path: Path) -> None:
    """Without and with a GPU, Transformer Engine, kernels, and kernels for another torch."""
    monkeypatch.chdir(tmp_path)
    bare = replace(H100, versions={}, kernels_fault="not built")
    machines = [
        Backends(),
        bare,
        replace(bare, compute_capability=(8, 0)),
        replace(H100, kernels_fault="built for torch 2.10.0"),
        H100,
    ]
    for asked in (["model=plt_1b"], ["model=plt_1b", "name=mine"], ["precision=bf16"]):
        found = [composed(Arguments(asked), machine) for machine in machines]
        assert len({config.run_dir for config in found}) == 1
        made = {(c.precision.name, c.model.layer_spec, c.model.kernels) for c in found}
        assert len(made) >= 2, made


def test_a_folder_of_the_former_name_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    asked, machine = compose([]), compose(["model.kernels=stock", "precision=fp32"])
    former = Path("runs") / f"plt_tiny-r2-{config_hash(machine)}"
    former.mkdir(parents=True)
    assert folder_of(asked, machine) == former
    now = Path("runs") / f"plt_tiny-r2-{config_hash(asked)}"
    now.mkdir()
    assert folder_of(asked, machine) == now


@pytest.mark.parametrize("name", ["a/b", "", "../x", ".hidden", "a b"])
def test_a_name_is_part_of_a_file_name(name: str) -> None:
    with pytest.raises(InputError, match="name="):
        compose([f"name='{name}'"])


@dataclass(frozen=True, config=STRICT)
class Inner:
    width: int = 1


@dataclass(frozen=True, config=STRICT)
class Before:
    steps: int = 5
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, config=STRICT)
class InnerAfter:
    width: int = 1
    depth: Annotated[int, Changes("numbers", since="2027-01")] = 2


@dataclass(frozen=True, config=STRICT)
class After:
    steps: int = 5
    inner: InnerAfter = field(default_factory=InnerAfter)
    more: Annotated[Inner, Changes("numbers", since="2027-01")] = field(default_factory=Inner)
    many: Annotated[list[Inner], Changes("numbers", since="2027-02")] = field(default_factory=list)


@pytest.mark.parametrize(
    "other", [After(inner=InnerAfter(depth=3)), After(more=Inner(2)), After(many=[Inner(1)])]
)
def test_a_field_that_was_added_keeps_the_names_of_older_runs(other: After) -> None:
    assert config_hash(After()) == config_hash(Before())
    assert config_hash(After(steps=6)) == config_hash(Before(steps=6)) != config_hash(Before())
    assert config_hash(other) != config_hash(After())


ODD = [
    "a/b",
    "../up",
    "..",
    ".hidden",
    "/root",
    "a ",
    " a",
    "",
    "-x",
    "a\\b",
    "x" * 300,
    "\u6f22" * 99,
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_becomes_one_visible_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of a model whose preset has it; what an older version made of it stays the run's."""
    monkeypatch.chdir(tmp_path)
    config = compose([])
    odd = replace(config, model=replace(config.model, name=name))
    folder = resolve_run_dir(odd, odd)
    assert folder.parent == Path("runs") and not folder.name.startswith((".", "-"))
    assert folder.name.endswith(f"-{config_hash(odd)}") and " " not in folder.name
    folder.mkdir(parents=True)
    assert not list(tmp_path.glob("runs/*/*"))
    assert not as_folder(name).startswith(".") and 0 < len(as_folder(name).encode()) <= 150
    former = Path("runs") / f"{name}-r2-{config_hash(odd)}"
    if len(str(former).encode()) < 200 and not former.is_absolute():
        former.mkdir(parents=True, exist_ok=True)
        assert resolve_run_dir(odd, odd) == former


@pytest.mark.parametrize("name", ["plt_tiny", "1e5", "a.b+c=d", "\u00e4rger", "x" * 150])
def test_a_usual_name_stays(name: str) -> None:
    assert as_folder(name) == name
