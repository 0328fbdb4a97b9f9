"""What the section `data` needs: something to read, proportions that exist, stages in order."""

from __future__ import annotations

from collections.abc import Iterator

from loopcoder.config.build import MIN_VOCAB_SIZE, NUM_SPECIAL_TOKENS, SourceConfig
from loopcoder.config.chat import CHECKPOINT
from loopcoder.config.check_build import check_build
from loopcoder.config.check_corpora import check_joined, check_own_sets, check_url
from loopcoder.config.check_names import check_names
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.fields import as_override, next_multiple
from loopcoder.config.schema import Config
from loopcoder.errors import Problem


def check_data(config: Config) -> Iterator[Problem]:
    """Yield what of this config no corpus can be built from, or no run can read from one."""
    data = config.data
    if not data.build.sources and data.path is None and not joined_corpora(data):
        why = f"data={data.name} needs the folder of a finished corpus"
        yield Problem(f"data={data.name} data.path=null", why, "path=DIR")
    yield from check_joined(config)
    if not data.build.sources and isinstance(data.path, str):
        yield from check_url("data.path", data.path, data)
    reads_path = any(
        s.kind in ("files", "hf", "chat") and s.path in (None, data.path)
        for s in data.build.sources
    )
    if data.path is not None and data.build.sources and not reads_path:
        yield Problem(
            f"data={data.name} data.path={as_override(data.path)}",
            "no source of this preset reads that path",
            f"data=files path={as_override(data.path)}",
        )
    for index, source in enumerate(data.build.sources):
        yield from _source(f"data.build.sources.{index}", source, data.path)
    yield from check_names(data)
    yield from check_build(data)
    yield from _tokenizer(config)
    yield from check_stages(config)
    yield from _skips(config)
    yield from check_lengths(config)
    yield from check_own_sets(config)


def check_lengths(config: Config) -> Iterator[Problem]:
    """Yield why validation cannot be at the lengths that are asked for."""
    lengths = config.eval.lengths or []
    useful = [length for length in dict.fromkeys(lengths) if length > 1]
    if useful != lengths:
        whys = []
        if 1 in lengths:
            whys.append("in a sequence of 1 token nothing is predicted from a token before it")
        if len(set(lengths)) < len(lengths):
            whys.append("every length is evaluated once")
        yield Problem(
            f"eval.lengths={as_override(lengths)}",
            ", and ".join(whys),
            f"eval.lengths={as_override(useful or None)}",
        )
        return
    for index, length in enumerate(lengths):
        yield from _length(config, f"eval.lengths.{index}", length)


def _source(key: str, source: SourceConfig, path: str | list[str] | None) -> Iterator[Problem]:
    if source.kind in ("debian", "npm") and not source.packages:
        yield Problem(
            f"{key}.kind={source.kind} {key}.packages=[]",
            "it reads the packages that it names",
            f"{key}.packages=[NAME]",
        )
    elif source.kind in ("files", "hf", "chat") and source.path is None and path is None:
        what = "a dataset's name or folder" if source.kind == "hf" else "files, folders or globs"
        yield Problem(
            f"{key}.kind={source.kind} data.path=null",
            f"there is nothing to read: the path is {what}",
            f"path={'NAME' if source.kind == 'hf' else 'DIR'}",
        )
    if source.streaming and source.max_documents is None and source.max_bytes is None:
        yield Problem(
            f"{key}.streaming=true {key}.max_documents=null",
            "a stream may have no end, and the corpus is built before training starts",
            f"{key}.max_documents=100000",
        )


def _tokenizer(config: Config) -> Iterator[Problem]:
    build, rows = config.data.build, config.model.vocab_size
    size = build.tokenizer_vocab_size
    if build.tokenizer == CHECKPOINT and build.is_chat and config.checkpoint.init_from is None:
        yield Problem(
            f"data.build.tokenizer={CHECKPOINT} checkpoint.init_from=null",
            "the conversations are encoded by the tokenizer of the checkpoint, in its template",
            "checkpoint.init_from=RUN, or data.build.tokenizer=FOLDER of a checkpoint or of a "
            "model for transformers",
        )
    if build.tokenizer != "train":
        return
    if size < MIN_VOCAB_SIZE:
        yield Problem(
            f"data.build.tokenizer_vocab_size={size}",
            f"{NUM_SPECIAL_TOKENS} special tokens and 256 single bytes come first",
            f"data.build.tokenizer_vocab_size={MIN_VOCAB_SIZE}",
        )
    if rows is not None and build.sources and size > rows:
        yield Problem(
            f"data.build.tokenizer_vocab_size={size} model.vocab_size={rows}",
            "every token needs a row of the embedding",
            f"data.build.tokenizer_vocab_size={rows}, or model.vocab_size=null",
        )


def check_stages(config: Config) -> Iterator[Problem]:
    """Yield why sequences cannot have the proportions, lengths and order that are asked for."""
    if not config.data.mixture:
        yield Problem("data.mixture={}", "nothing to train on", "'data.mixture={text:1,code:1}'")
    given = bool(config.data.stages)
    last_until = 0
    for index, stage in enumerate(config.stages):
        where = f"data.stages.{index}." if given else "data."
        yield from _length(config, f"{where}seq_length", stage.seq_length)
        is_last = index == len(config.stages) - 1
        if is_last and stage.until is not None:
            yield Problem(
                f"{where}until={stage.until} in the last stage",
                "the run ends by train.max_steps, so the last stage is open",
                f"{where}until=null",
            )
        if not is_last and stage.until is None:
            yield Problem(
                f"{where}until=null",
                "the stages after it would never start",
                f"{where}until=TOKENS",
            )
        if not is_last and stage.until is not None:
            if stage.until <= last_until:
                yield Problem(
                    f"{where}until={stage.until} after {last_until}",
                    "until counts the tokens of the whole run and grows from stage to stage",
                    f"{where}until={last_until + stage.until}",
                )
            last_until = max(last_until, stage.until)


def _skips(config: Config) -> Iterator[Problem]:
    steps = [skip.step for skip in config.data.skip]
    for index, step in enumerate(steps):
        if step in steps[:index]:
            first = steps.index(step)
            both = config.data.skip[first].steps + config.data.skip[index].steps
            yield Problem(
                f"data.skip.{first}.step={step} data.skip.{index}.step={step}",
                "what is left out before a step is one entry",
                f"data.skip.{first}.steps={both} without the other",
            )


def _length(config: Config, key: str, length: int) -> Iterator[Problem]:
    """Yield why no sequence can have the length that the field `key` asks for."""
    m, p = config.model, config.parallel
    if length > m.max_position_embeddings:
        yield Problem(
            f"{key}={length} model.max_position_embeddings={m.max_position_embeddings}",
            "a sequence is longer than the model's positions",
            f"{key}={m.max_position_embeddings}",
        )
    if p.sp and length % p.tp:
        yield Problem(
            f"{key}={length} parallel.sp=true parallel.tp={p.tp}",
            "sequence parallelism gives every process an equal part of the sequence",
            f"{key}={next_multiple(length, p.tp)}",
        )
