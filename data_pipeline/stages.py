"""The stages of a corpus, in order: the one place where a stage is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline import finish as finishing
from data_pipeline.balance import plan
from data_pipeline.dedup import stages as dedup
from data_pipeline.readers import ingest
from data_pipeline.repositories import stages as repositories
from data_pipeline.repositories.chunks import num_chunks
from data_pipeline.shuffle import stages as shuffle
from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer import count, train


@dataclass(frozen=True)
class Stage:
    """One stage: its tasks depend on stages before it only, and not on each other."""

    kind: type[Result]
    """What its tasks return; has its name."""
    title: str
    """What it does, for people."""
    run: Callable[[Work, int], Output]
    tasks: Callable[[Work], int]

    @property
    def name(self) -> str:
        return self.kind.stage


def _num_parts(work: Work) -> int:
    return work.result(ingest.Listed).parts


def _num_read(work: Work) -> int:
    return len(work.chunks)


def _num_scattered(work: Work) -> int:
    return len(work.chunks) if repositories.is_on(work) else 0


def _one_if_joined(work: Work) -> int:
    return int(repositories.is_on(work))


def _num_samples(work: Work) -> int:
    return num_chunks(work) if train.is_trained(work) else 0


def _num_domains(work: Work) -> int:
    return len(work.domains)


def _one(_: Work) -> int:
    return 1


def _finish(work: Work, _: int) -> Output:
    return finishing.finish(work, [stage.kind for stage in STAGES[:-1]])


STAGES = (
    Stage(ingest.Read, "ingest, clean, decontaminate, label", ingest.read_part, _num_parts),
    Stage(ingest.Gathered, "number the chunks", ingest.gather, _one),
    Stage(dedup.Signed, "hash and sign documents", dedup.sign, _num_read),
    Stage(dedup.Matched, "find copies", dedup.match, dedup.num_matches),
    Stage(dedup.Clustered, "choose which copy stays", dedup.cluster, _one),
    Stage(
        repositories.Scattered,
        "sort files by repository",
        repositories.scatter,
        _num_scattered,
    ),
    Stage(
        repositories.Joined,
        "join the files of repositories",
        repositories.join_bucket,
        repositories.num_buckets,
    ),
    Stage(
        repositories.JoinedNumbered,
        "number the chunks of repositories",
        repositories.number_joined,
        _one_if_joined,
    ),
    Stage(train.Sampled, "draw text for the tokenizer", train.sample, _num_samples),
    Stage(count.Tokenizer, "make the tokenizer", train.make, _one),
    Stage(count.Counted, "count tokens", count.count, num_chunks),
    Stage(plan.Planned, "plan the shares", plan.make_plan, _one),
    Stage(shuffle.Tokenised, "tokenise into buckets", shuffle.tokenise, num_chunks),
    Stage(shuffle.BucketsIndexed, "list the buckets", shuffle.index_buckets, _one),
    Stage(
        shuffle.Assembled, "shuffle and write shards", shuffle.assemble_shards, shuffle.num_shards
    ),
    Stage(shuffle.HeldOut, "write held-out documents", shuffle.write_held_out, _num_domains),
    Stage(shuffle.Checked, "validate", shuffle.validate_shards, shuffle.num_shards),
    Stage(finishing.Finished, "write the manifest", _finish, _one),
)
"""In the order in which they run."""
