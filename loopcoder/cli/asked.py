"""The held-out documents on which a verb measures checkpoints: those of the run, or others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.pinned import gone, where_is
from loopcoder.cli.arguments import say_aside
from loopcoder.cli.own_tokenizer import tokenizer_folder
from loopcoder.config.check_corpora import check_joined, check_own_sets
from loopcoder.config.check_data import check_lengths, check_stages
from loopcoder.config.compose import changed, compose, load_config
from loopcoder.config.corpora import joined_corpora, settled
from loopcoder.config.data import DataConfig
from loopcoder.config.identity import corpus_fields
from loopcoder.config.schema import Config, ParallelConfig
from loopcoder.data.check_packed import check_packed
from loopcoder.data.corpus import Corpus, Verify, at_once, load_corpus
from loopcoder.data.manifest import check_domains
from loopcoder.data.own_sets import check_own_folders
from loopcoder.data.places import TOKENIZER
from loopcoder.errors import InputError

_CACHE_DIR = "data.build.cache_dir"
"""Where corpora are, whichever it is."""
_OTHER_DATA = ("data", "path", "data.path")
"""Keys that name other documents than the run's, as those below `_SOURCES` do."""
_SOURCES = "data.build.sources"
_EVALUATED = ("model.num_loops", "precision", "train.micro_batch_size", "eval.*")


class Asked:
    """The overrides of a verb that measures checkpoints."""

    def __init__(
        self,
        overrides: Sequence[str],
        config_dir: Path | None,
        allowed: Sequence[str] = _EVALUATED,
    ):
        """
        Args:
            allowed: What may be given besides data.

        Raises:
            InputError: they do not compose.
        """
        self._overrides, self._allowed = overrides, allowed
        self._single = single_data(overrides)
        self._asked = compose([o for o in overrides if o not in self._single], config_dir)

    @cached_property
    def cache(self) -> Path:
        """Where corpora are, and what has a URL is fetched to."""
        return Path(self._asked.data.build.cache_dir).expanduser()

    @property
    def parallel(self) -> ParallelConfig:
        """The layout that was asked for; without one, one process."""
        return self._asked.parallel

    def of(self, checkpoint: Checkpoint) -> tuple[Config, Corpus]:
        """Return the config of a checkpoint's run with what was asked for, and its corpus.

        Raises:
            InputError: something does not fit, the corpus is gone and cannot be built, or it is
                packed for other settings.
        """
        others, cache = self._overrides, self.cache
        trained = load_config(checkpoint.path / layout.CONFIG)
        config = as_asked(trained, self._asked, others, self._allowed)
        config = replace(config, data=settled(config.data))
        wrong = []
        if config.data != trained.data:
            wrong += [*check_stages(config), *check_joined(config)]
        if config.eval != trained.eval:
            wrong += [*check_lengths(config), *check_own_sets(config)]
        if wrong:
            raise InputError(wrong)
        check_own_folders(config)
        verify = at_once(config.data) if "data.verify" in map(_key, others) else "size"
        if joined_corpora(config.data):
            corpus = corpus_of(checkpoint, config.data, cache, verify)
        elif config.data == trained.data or (
            self._single and _same_build(config.data, trained.data)
        ):
            corpus = corpus_of_the_run(checkpoint, trained, cache, verify)
            if config.data != trained.data:
                domains = {domain for stage in config.stages for domain in stage.mixture}
                check_domains(corpus.dir, corpus.manifest, sorted(domains))
        else:
            corpus = corpus_of(checkpoint, config.data, cache, verify)
        check_packed(config, corpus)
        return config, corpus


def single_data(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that set fields of the run's data; [] where other data are named, whose
    fields they set."""
    keys = [_key(override) for override in overrides]
    if any(key in _OTHER_DATA or key.startswith(_SOURCES) for key in keys):
        return []
    return [
        override
        for override, key in zip(overrides, keys, strict=True)
        if key.startswith("data.") and key != _CACHE_DIR
    ]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def as_asked(
    trained: Config,
    asked: Config,
    overrides: Sequence[str],
    allowed: Sequence[str] = _EVALUATED,
) -> Config:
    """Return the config of a run with what the overrides change of it.

    Args:
        trained: The config of the run.
        asked: The composed overrides, without those of `single_data`.
        overrides: All of them.
        allowed: What may be given besides data.

    Raises:
        InputError: an override that would change nothing here, or a wrong one of `single_data`.
    """
    single = single_data(overrides)
    config = changed(trained, single) if single else trained
    for override in overrides:
        key = _key(override)
        section, _, field = key.partition(".")
        if key == _CACHE_DIR or override in single:
            continue
        if section in ("data", "path"):
            config = replace(config, data=asked.data)
        elif key not in allowed and f"{section}.*" not in allowed:
            raise InputError.of(
                override,
                "a checkpoint is evaluated as its run was trained, but for "
                + ", ".join([*allowed, "data.*"]),
                "leave it out",
            )
        elif section == "eval" and field:
            config = changed(config, [override])
        elif section == "parallel":
            config = replace(config, parallel=asked.parallel)
        elif key == "model.num_loops":
            config = replace(config, model=replace(config.model, num_loops=asked.model.num_loops))
        elif key == "precision":
            config = replace(config, precision=asked.precision)
        elif key == "train.micro_batch_size":
            size = asked.train.micro_batch_size
            config = replace(config, train=replace(config.train, micro_batch_size=size))
    return config


def _same_build(data: DataConfig, trained: DataConfig) -> bool:
    """Whether a corpus of the run's data would be the run's; a finished one is opened as it is."""
    rebuilt = replace(trained, build=data.build)
    return not data.build.sources or corpus_fields(rebuilt) == corpus_fields(trained)


def corpus_of_the_run(
    checkpoint: Checkpoint, trained: Config, cache: Path, verify: Verify = "size"
) -> Corpus:
    """Return the corpus that a checkpoint was trained on.

    Args:
        trained: The config of the run.
        cache: Where corpora are today; the run's config may name another folder.
        verify: What of it is compared with its manifest.

    Raises:
        InputError: it is gone and has no sources, or they give other tokens today.
    """
    state = checkpoint.state()
    if not state.corpus:
        raise InputError.of(
            f"{checkpoint.path} was imported, and has no corpus of its own",
            "a model is evaluated on the held-out documents of a corpus",
            "data=files path=DOCUMENTS, or data=sample",
        )
    folder = where_is(state.corpus_dir, state.corpus, cache)
    if folder is not None:
        return load_corpus(folder, verify)
    fact, fix = gone(state.corpus_dir, state.corpus, cache)
    if not trained.data.build.sources:
        why = "a checkpoint is evaluated on the held-out documents of its corpus"
        raise InputError.of(fact, why, fix)
    say_aside(f"data: {fact}: built again from its sources; if it was moved, {fix}")
    return corpus_of(checkpoint, trained.data, cache, verify)


def corpus_of(
    checkpoint: Checkpoint, data: DataConfig, cache: Path, verify: Verify = "size"
) -> Corpus:
    """Return the corpus that `data` describes, in the tokens of a checkpoint.

    Args:
        cache: Where corpora are today.
        verify: What of it is compared with its manifest.

    Raises:
        InputError: it was tokenised by another tokenizer.
    """
    from data_pipeline.driver import prepare

    state = checkpoint.state()
    if not state.has_tokenizer:
        raise InputError.of(
            f"{checkpoint.place} was imported without a tokenizer",
            "documents are read as the ids of its tokens",
            "import it with tokenizer=PATH of its tokenizer.json, or with that file in its folder",
        )
    if data.build.sources:
        copied = checkpoint.path / TOKENIZER
        tokenizer = str(copied) if copied.is_file() else state.tokenizer_path
        if data.build.is_chat:
            tokenizer = str(tokenizer_folder(checkpoint, cache))
        build = replace(data.build, tokenizer=tokenizer, cache_dir=str(cache))
        data = replace(data, build=build)
    corpus = prepare(data, report=say_aside, verify=verify)
    if corpus.tokenizer_hash != state.tokenizer_hash:
        raise InputError.of(
            f"{corpus.dir} has another tokenizer than {checkpoint.path} was trained with",
            "the same ids mean other text",
            "data=files path=DOCUMENTS, which is tokenised as the checkpoint was, or no data=",
        )
    return corpus
