"""The stages of a corpus, in order: the one place where a stage is added."""

from __future__ import annotations

from data_pipeline import finish
from data_pipeline.balance import plan
from data_pipeline.chat import finish as chat_finish
from data_pipeline.chat import packed, rendered, template
from data_pipeline.chat import stages as chat
from data_pipeline.dedup import stages as dedup
from data_pipeline.readers import ingest
from data_pipeline.repositories import stages as repositories
from data_pipeline.repositories.chunks import num_chunks
from data_pipeline.sealing import Finished
from data_pipeline.shuffle import stages as shuffle
from data_pipeline.tasks.stage import Stage, one
from data_pipeline.tasks.work import Output, Work
from data_pipeline.tokenizer import count, train


def _num_parts(work: Work) -> int:
    return work.result(ingest.Listed).parts


def _num_read(work: Work) -> int:
    return len(work.chunks)


def reading(title: str) -> tuple[Stage, ...]:
    """Return the stages that all corpora begin with: read the input, and drop copies.

    Args:
        title: What is done to what is read.
    """
    return (
        Stage(ingest.Read, title, ingest.read_part, _num_parts),
        Stage(ingest.Gathered, "number the chunks", ingest.gather, one),
        Stage(dedup.Signed, "hash and sign documents", dedup.sign, _num_read),
        Stage(dedup.Matched, "find copies", dedup.match, dedup.num_matches),
        Stage(dedup.Clustered, "choose which copy stays", dedup.cluster, one),
    )


def _num_scattered(work: Work) -> int:
    return len(work.chunks) if repositories.is_on(work) else 0


def _one_if_joined(work: Work) -> int:
    return int(repositories.is_on(work))


def _num_samples(work: Work) -> int:
    return num_chunks(work) if train.is_trained(work) else 0


def _num_domains(work: Work) -> int:
    return len(work.domains)


def _finish(work: Work, _: int) -> Output:
    return finish.finish(work, [stage.kind for stage in STAGES[:-1]])


def _finish_chat(work: Work, _: int) -> Output:
    return chat_finish.finish(work, [stage.kind for stage in CHAT_STAGES[:-1]])


STAGES = (
    *reading("ingest, clean, decontaminate, label"),
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
    Stage(count.Tokenizer, "make the tokenizer", train.make, one),
    Stage(count.Counted, "count tokens", count.count, num_chunks),
    Stage(plan.Planned, "plan the shares", plan.make_plan, one),
    Stage(shuffle.Tokenised, "tokenise into buckets", shuffle.tokenise, num_chunks),
    Stage(shuffle.BucketsIndexed, "list the buckets", shuffle.index_buckets, one),
    Stage(
        shuffle.Assembled, "shuffle and write shards", shuffle.assemble_shards, shuffle.num_shards
    ),
    Stage(shuffle.HeldOut, "write held-out documents", shuffle.write_held_out, _num_domains),
    Stage(shuffle.Checked, "validate", shuffle.validate_shards, shuffle.num_shards),
    Stage(Finished, "write the manifest", _finish, one),
)
"""Those of documents, in the order in which they run."""

CHAT_STAGES = (
    *reading("read, check, decontaminate"),
    Stage(count.Tokenizer, "take the tokenizer", train.make, one),
    Stage(template.Template, "take the template", template.take, one),
    Stage(rendered.Rendered, "render and tokenise", rendered.render, _num_read),
    Stage(packed.Packed, "hold out and pack", packed.plan, one),
    Stage(chat.Assembled, "write shards", chat.assemble, packed.num_shards),
    Stage(chat.HeldOut, "write held-out conversations", chat.hold_out, one),
    Stage(chat.Checked, "validate", chat.check, chat.num_checked),
    Stage(Finished, "write the manifest", _finish_chat, one),
)
"""Those of conversations, in the order in which they run."""


def stages_of(work: Work) -> tuple[Stage, ...]:
    """Return the stages of a build."""
    return CHAT_STAGES if work.data.build.is_chat else STAGES
