"""Several corpora that are read as one: names, weights, order, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.config.build import SourceConfig
from loopcoder.config.check_corpora import check_joined
from loopcoder.config.corpora import joined_mixture, settled
from loopcoder.config.data import CorpusConfig, DataConfig, StageConfig
from loopcoder.config.schema import Config
from loopcoder.data.blend import Blend, reader_of
from loopcoder.data.corpus import Corpus, lost
from loopcoder.data.heldout import HeldOut
from loopcoder.data.joined import JoinedCorpus, open_joined, trained_part
from loopcoder.data.labels import LABELS
from loopcoder.data.manifest import check_domains
from loopcoder.data.unigram import entropies_of
from loopcoder.data.verifier import Verifier, unverified
from loopcoder.errors import InputError
from tests.configs import small_config
from tests.data.conftest import corpus, data

__all__ = ["corpus", "data"]  # fixtures


def build(data: DataConfig, folder: Path, tokenizer: Path | None, extension: str) -> Corpus:
    """Build a corpus of one language or of prose alone."""
    folder.mkdir()
    for i in range(40):
        lines = [f"{folder.name} {i} of {j} = {i * j}" for j in range(40)]
        ending = "go" if extension == "java" and i % 2 else extension
        (folder / f"own{i}.{ending}").write_text("\n".join(lines) + "\n")
    own = replace(
        data.build,
        sources=[SourceConfig(kind="files", path=str(folder))],
        tokenizer="train" if tokenizer is None else str(tokenizer),
    )
    domain = "text" if extension == "txt" else "code"
    return prepare(replace(data, mixture={domain: 1.0}, build=own), report=lambda _: None)


@pytest.fixture
def two(data: Callable[..., DataConfig], corpus: Corpus, tmp_path: Path) -> dict[str, Corpus]:
    """A mixed corpus and one of code alone."""
    return {
        "mixed": corpus,
        "java": build(data(), tmp_path / "java", corpus.tokenizer_path, "java"),
    }


def entry(name: str, corpus: Corpus, weight: float = 1.0) -> CorpusConfig:
    return CorpusConfig(path=str(corpus.dir), weight=weight, name=name)


def configured(corpora: list[CorpusConfig], **fields: Any) -> Config:
    """A config of finished corpora, as a run has it."""
    config = small_config()
    own = replace(config.data, build=replace(config.data.build, sources=[]), corpora=corpora)
    return replace(config, data=settled(replace(own, **fields)))


@pytest.mark.parametrize(
    ("mixture", "weights", "wanted"),
    [
        ({"text": 1, "code": 1}, (1, 2), {"a/text": 3, "a/code": 1, "b/code": 2}),
        ({"code": 1}, (0.1, 0.3), {"a/code": 1, "b/code": 3}),
        ({"text": 2, "code": 1}, (1, 1), {"a/text": 4, "a/code": 1, "b/code": 1}),
        ({"text": 1, "b/code": 3}, (1, 2), {"a/text": 1, "b/code": 3}),
        ({"text": 1, "code": 1, "b/code": 3}, (1, 2), {"a/text": 1, "a/code": 1, "b/code": 3}),
    ],
)
def test_corpora_share_a_domain_by_their_weights(
    mixture: dict[str, float], weights: tuple[float, float], wanted: dict[str, float]
) -> None:
    corpora = [
        CorpusConfig(path="/x/a", weight=weights[0], domains=["text", "code"]),
        CorpusConfig(path="/y", weight=weights[1], name="b", domains=["code"]),
    ]
    assert joined_mixture(mixture, corpora) == wanted


@pytest.mark.parametrize("reader", ["megatron", "packed", "shuffled"])
def test_a_domain_reads_its_member_and_every_batch_has_the_weights(
    two: dict[str, Corpus], reader: str
) -> None:
    corpora = [entry("mixed", two["mixed"]), entry("java", two["java"], 2)]
    config = configured(corpora, seq_length=16, reader=reader)
    (stage,) = config.stages
    assert stage.mixture == {"mixed/text": 3, "mixed/code": 1, "java/code": 2}
    joined = prepare(config.data, report=lambda _: None)
    assert isinstance(joined, JoinedCorpus)
    assert joined.domains == ("mixed/text", "mixed/code", "java/code")
    blend = Blend(joined, stage, 0, 7, reader_of(config.data))
    rows = blend.rows(np.arange(60))
    assert Counter(rows.domain_ids.tolist()) == {0: 30, 1: 10, 2: 20}
    of_java = [label for label in joined.labels if label.domain == "java/code"]
    assert {label.language for label in of_java} == {"Java", "Go"}
    assert all(label.source.startswith("java/") for label in of_java if label.source)
    for index, found in zip(rows.domain_ids.tolist(), rows.label_ids, strict=True):
        assert {joined.labels[i].domain for i in found.tolist()} == {joined.domains[index]}
    assert joined.label_tokens("train").sum() == sum(
        joined.tokens(d, "train") for d in joined.domains
    )
    for index, domain in enumerate(joined.domains):
        member, own = joined.part(domain)
        files = [Path(p + ".bin").read_bytes() for p in member.prefixes(own, "train")]
        ids = np.frombuffer(b"".join(files), np.uint16)
        there = {bytes(w) for w in np.lib.stride_tricks.sliding_window_view(ids, 17)}
        chosen = rows.ids[rows.domain_ids == index].numpy().astype(np.uint16)
        if reader != "megatron" and len(member.prefixes(own, "train")) == 1:
            assert {bytes(row) for row in chosen} <= there
    held = HeldOut(joined, "java/code", config.data, 16, 10**6)
    alone = HeldOut(two["java"], "code", config.data, 16, 10**6)
    assert torch.equal(held.rows, alone.rows) and (held.domain, held.domain_id) == ("java/code", 2)
    assert torch.equal(held.label_ids, alone.label_ids + joined.first_label("java/code"))
    assert joined.first_label("java/code") == len(two["mixed"].labels)


def ids_of(config: Config, domain: str, samples: int = 12) -> torch.Tensor:
    """The first sequences of a domain in a blend."""
    joined = open_joined(config.data, "size")
    stage = replace(config.stages[0], mixture={domain: 1.0})
    return Blend(joined, stage, 0, 7, reader_of(config.data)).rows(np.arange(samples)).ids


def test_the_order_of_a_domain_does_not_follow_from_its_company(two: dict[str, Corpus]) -> None:
    mixed, java = two["mixed"], two["java"]
    first = configured([entry("mixed", mixed), entry("java", java)], seq_length=16)
    turned = configured([entry("java", java, 5), entry("mixed", mixed)], seq_length=16)
    alone = configured([entry("other", java)], seq_length=16, mixture={"code": 1.0})
    wanted = ids_of(first, "java/code")
    assert torch.equal(ids_of(turned, "java/code"), wanted)
    assert torch.equal(ids_of(alone, "other/code"), wanted)
    assert not torch.equal(ids_of(first, "mixed/code"), wanted)


def test_stages_have_corpora_of_their_own(two: dict[str, Corpus]) -> None:
    stages = [
        StageConfig(until=100),
        StageConfig(mixture={"code": 1.0}, corpora=[entry("java", two["java"])]),
    ]
    config = configured([entry("mixed", two["mixed"])], stages=stages)
    assert [s.mixture for s in config.stages] == [
        {"mixed/text": 1, "mixed/code": 1},
        {"java/code": 1},
    ]
    assert not list(check_joined(config))
    joined = open_joined(config.data, "hash")
    assert list(joined.parts) == ["mixed", "java"]
    # a corpus that a later stage adds is no other data for a run that has not come there
    before = configured([entry("mixed", two["mixed"])])
    fingerprint = open_joined(before.data, "size").fingerprint
    assert trained_part(joined, before.data) == fingerprint != joined.fingerprint
    assert trained_part(two["java"], config.data) == two["java"].fingerprint
    assert trained_part(joined, config.data) == joined.fingerprint


def test_the_unigram_entropy_is_that_of_each(two: dict[str, Corpus], tmp_path: Path) -> None:
    joined = open_joined(configured([entry(n, c) for n, c in two.items()]).data, "size")
    found = entropies_of(joined, tmp_path, pytest.fail)
    assert found["java/code"] == two["java"].manifest["unigram_entropy"]["code"]
    for folder in (two["mixed"].dir, two["java"].dir):  # as of earlier commits
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["unigram_entropy"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    joined = open_joined(configured([entry(n, c) for n, c in two.items()]).data, "size")
    counted = entropies_of(joined, tmp_path, lambda _: None)
    assert counted == pytest.approx(found)


def test_a_member_that_is_taken_away_is_named(two: dict[str, Corpus]) -> None:
    joined = open_joined(configured([entry(n, c) for n, c in two.items()]).data, "size")
    assert lost(joined) is None
    next((two["java"].dir / "train").glob("*.bin")).unlink()
    assert str(two["java"].dir) in str(lost(joined))
    assert "data.corpora" in str(lost(joined)).split("fix:")[1]


def refused(config: Config) -> InputError:
    with pytest.raises(InputError) as error:
        open_joined(config.data, "hash")
    return error.value


def test_other_tokens_are_refused(
    data: Callable[..., DataConfig], corpus: Corpus, tmp_path: Path
) -> None:
    other = build(data(), tmp_path / "other", None, "txt")
    (problem,) = refused(configured([entry("a", corpus), entry("b", other)])).problems
    assert f"{other.dir} has another tokenizer than {corpus.dir}" in problem.fact
    assert f"data.build.tokenizer={corpus.tokenizer_path}" in problem.fix


def test_all_that_cannot_be_opened_is_refused_at_once(
    two: dict[str, Corpus], tmp_path: Path
) -> None:
    gone = CorpusConfig(path=str(tmp_path / "nowhere"), name="gone")
    twice = entry("copy", two["mixed"])
    less = CorpusConfig(path=str(two["java"].dir), name="java", domains=["text"])
    facts = str(refused(configured([entry("mixed", two["mixed"]), gone, twice, less])))
    for part in (
        "there is no finished corpus",
        "are the same corpus",
        "not text",
        "1.name=gone",
    ):
        assert part in facts
    (two["java"].dir / "val" / "code.bin").write_bytes(b"ab")
    assert "code.bin" in str(refused(configured([entry(n, c) for n, c in two.items()])))


NAMED = dict(path="/x", domains=["code"])
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a preset that builds": (
        {"build": replace(small_config().data.build, sources=[SourceConfig(kind="sample")])},
        "with data.corpora",
        "data=corpus",
    ),
    "a path as well": ({"path": "/y"}, "data.path=/y", "{path:/y,weight:1}"),
    "a name that is none": (
        {"corpora": [CorpusConfig(**NAMED, name="a/b")]},
        "'a/b'",
        "data.corpora.0.name=NAME",
    ),
    "two of one name": (
        {"corpora": [CorpusConfig(**NAMED), CorpusConfig(path="/y/x", domains=["code"])]},
        "are called x",
        "data.corpora.1.name=OTHER",
    ),
    "one twice": (
        {"corpora": [CorpusConfig(**NAMED), CorpusConfig(path="/y/../x/", domains=["code"])]},
        "data.corpora.1 is x again",
        "leave one of them out",
    ),
    "a preset that builds, corpora in stages": (
        {
            "build": replace(small_config().data.build, sources=[SourceConfig(kind="sample")]),
            "corpora": [],
            "stages": [StageConfig(corpora=[CorpusConfig(**NAMED)])],
        },
        "data=test with data.stages.0.corpora",
        "data=corpus",
    ),
    "a store whose domains are not said": (
        {"corpora": [CorpusConfig(path="s3://bucket/x")]},
        "domains=null",
        "data.corpora.0.domains=[text,code]",
    ),
    "a store for megatron": (
        {"corpora": [CorpusConfig(path="s3://b/x", domains=["code"])], "reader": "megatron"},
        "data.reader=megatron",
        "data.reader=shuffled",
    ),
    "a store in the background": (
        {"corpora": [CorpusConfig(path="s3://b/x", domains=["code"])], "verify": "background"},
        "data.verify=background",
        "data.verify=hash",
    ),
    "a stage without": (
        {"stages": [StageConfig(until=9, corpora=[]), StageConfig()]},
        "data.stages.0.corpora=[]",
        "data.stages.0.corpora=[{path:FOLDER,weight:1}]",
    ),
    "a language": ({"mixture": {"code": 1.0, "Python": 2.0}}, "has 'Python'", "path:FOLDER"),
    "a source": ({"mixture": {"0-files": 2.0, "code": 1.0}}, "has '0-files'", "path:FOLDER"),
    "a language of a corpus": ({"mixture": {"x/Python": 2.0}}, "has 'x/Python'", "path:FOLDER"),
    "no such domain": ({"mixture": {"text": 1.0, "code": 1.0}}, "has 'text'", "mixture={code:1}"),
    "nothing of one": (
        {"corpora": [CorpusConfig(**NAMED), CorpusConfig(path="/prose", domains=["text"])]},
        "has prose",
        "leave it out",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_what_mends_it(mistake: str) -> None:
    fields, fact, fix = MISTAKES[mistake]
    good = {"corpora": [CorpusConfig(**NAMED)], "mixture": {"code": 1.0}}
    assert not list(check_joined(configured(**good)))
    problems = list(check_joined(configured(**(good | fields))))
    assert any(fact in p.fact and fix in p.fix for p in problems), problems


@pytest.mark.parametrize("name", ["Python", "python", "0-files", "files"])
def test_weights_by_language_or_source_of_one_corpus_are_refused(corpus: Corpus, name: str) -> None:
    with pytest.raises(InputError) as error:
        check_domains(corpus.dir, corpus.manifest, ["text", name])
    (problem,) = error.value.problems
    assert name in problem.why and "mixed" in problem.why and "data.corpora=[" in problem.fix
    with pytest.raises(InputError, match="draws from every domain"):
        check_domains(corpus.dir, corpus.manifest, ["text", "prose"])


def test_shards_of_members_are_verified_in_the_background(two: dict[str, Corpus]) -> None:
    config = configured([entry(n, c) for n, c in two.items()], verify="background")
    joined = open_joined(config.data, "size")
    shards = unverified(config, joined)
    assert sorted(str(member.dir / prefix) for member, prefix in shards) == sorted(
        prefix for domain in joined.domains for prefix in joined.prefixes(domain, "train")
    )
    whole = Verifier(shards, (".bin", LABELS))
    whole.wait()
    assert whole.is_finished and whole.fault is None
    shard = Path(two["java"].prefixes("code", "train")[0] + ".bin")
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    damaged = Verifier(shards, (".bin",))
    damaged.wait()
    assert str(shard) in str(damaged.fault) and str(two["java"].dir) in str(damaged.fault)


def test_one_corpus_under_two_names_is_refused_once(two: dict[str, Corpus], tmp_path: Path) -> None:
    """Whatever makes it look like two: its sequences would be given once by each."""
    folder, link, copy = two["java"].dir, tmp_path / "link", tmp_path / "copy"
    link.symlink_to(folder)
    shutil.copytree(folder, copy)
    for place in (link, copy, folder / ".." / folder.name):
        again = CorpusConfig(path=str(place), name="again", domains=["code"])
        config = configured([entry("java", two["java"]), again], mixture={"code": 1.0})
        (problem,) = [*check_joined(config), *refused(config).problems]
        assert "are the same corpus" in problem.fact and "leave one of them out" in problem.fix


def test_stages_may_write_the_path_of_a_corpus_in_other_ways() -> None:
    stages = [
        StageConfig(until=512, corpora=[CorpusConfig(**NAMED)]),
        StageConfig(corpora=[CorpusConfig(path="/y/../x/", name="x", domains=["code"])]),
    ]
    config = configured([], stages=stages, mixture={"code": 1.0})
    assert list(check_joined(config)) == []
