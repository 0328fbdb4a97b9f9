"""The section `data.build`: what a corpus is built from, and how its documents become one."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from loopcoder.config.chat import ChatConfig
from loopcoder.config.filters import FilterConfig
from loopcoder.config.types import (
    STRICT,
    Changes,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

NUM_SPECIAL_TOKENS = 64
"""Ids of a trained tokenizer that stand for no text: the end of a document, markers, reserves."""
MIN_VOCAB_SIZE = NUM_SPECIAL_TOKENS + 256
"""Smallest size of a trained tokenizer: its special tokens and every single byte."""
MAX_VOCAB_SIZE = 1 << 21
"""Largest size of a trained tokenizer; training reserves memory for all of it at once."""

EOD = "<|endoftext|>"
EODS = (
    EOD,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Names of the end of a document in the tokenizers of base models; the first that one has counts.
`<|im_end|>` and `<|eot_id|>` end a turn of a conversation, and are none."""

PADS = ("<pad>", "<|pad|>", "[PAD]")
"""Names of the padding token, the first that a tokenizer has counts."""

MAX_REPOSITORY_BYTES = 8 << 20
"""Largest document of files of a repository: as large as a file may be."""

Epochs = Annotated[float, Field(gt=0, le=10_000)]
InvalidUtf8 = Literal["error", "replace", "drop"]


@dataclass(frozen=True, config=STRICT)
class SourceConfig:
    """One input of the corpus."""

    kind: Literal["sample", "files", "hf", "debian", "npm", "chat"]
    """`sample`: what is installed on this machine. `files`: a folder or jsonl/parquet. `hf`:
    Hugging Face `datasets`. `debian`, `npm`: packages, fetched by apt-get or npm. `chat`:
    conversations, in jsonl, parquet or `datasets`."""
    path: str | list[str] | None = None
    """Files, folders or globs; for hf a dataset's name or the folder of one saved to disk, for chat
    either; for packages the folder they are kept in (null: `packages` in cache_dir)."""
    packages: list[str] = field(default_factory=list)
    """Debian or npm packages, NAME or with a version (`NAME=VERSION`, `NAME@VERSION`)."""
    licence: str | None = None
    """SPDX expression for documents that name none themselves; it goes to the manifest."""
    domain: Literal["auto", "text", "code"] = "auto"
    """Domain of the corpus; auto goes by each file's extension (rows of jsonl/parquet: by
    `language_field`, else text)."""
    text_field: str = "text"
    r"""Column that holds the document; `a.b` is the field b of the column a (`a\.b`: of that name).
    The other columns are named in the same way."""
    language_field: str | None = None
    """Column that names the programming language; rows that have one are code, those that name a
    format of prose, a spoken language or `none` text."""
    path_field: str | None = None
    """Column with the name of the file that a row was; tells the language of a row of code
    (domain=code) where none is given."""
    repository_field: Annotated[str | None, Changes("corpus", since="2026-11-29")] = None
    """Column with the repository that a row's file belongs to; needs `path_field`. It is used by
    `data.build.repository`."""
    licence_field: str | None = None
    """Column with the SPDX expression of a row's licence; of a chat null: `licence`, `license`."""
    messages_field: Annotated[str | None, Changes("corpus", since="2026-11-30")] = None
    """Of a chat: column with the messages; null: `messages` or `conversations`, or the columns of a
    prompt and its answer."""
    tools_field: Annotated[str | None, Changes("corpus", since="2026-11-30")] = None
    """Of a chat: column with the tools that a conversation may call; null: `tools`, or
    `functions`."""
    markup: Annotated[Literal["read", "keep"], Changes("corpus", since="2026-11-30")] = "read"
    """Of a chat: `<tool_call>`, `<functioncall>`, `<tool_response>` and `<think>` within what is
    said: read as calls, results and reasoning, and a conversation where that is not possible left
    out; or kept as text (a `<think>` block that an answer begins with is read in any case)."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    config_name: str | None = None
    """Configuration of a Hugging Face dataset."""
    streaming: bool = False
    """Read a Hugging Face dataset without downloading it first."""
    invalid_utf8: InvalidUtf8 | None = None
    """What to do with bytes that are not UTF-8; null: as `data.build.invalid_utf8`."""
    max_documents: PositiveInt | None = None
    """Stop after this many documents; needed for an endless stream."""
    max_bytes: PositiveInt | None = None
    """Stop a domain (text, code) of this source after this many bytes of UTF-8."""


@dataclass(frozen=True, config=STRICT)
class NearDedupConfig:
    """Which documents count as near copies; exact copies are always dropped."""

    enabled: bool | Literal["auto"] = True
    """Look for near copies; needs rensa (auto: where it is installed)."""
    bands: Annotated[int, Field(ge=1, le=1000)] = 14
    """Bands of a signature; each takes 16 bytes per document on disk."""
    rows: Annotated[int, Field(ge=1, le=1000)] = 8
    """Hashes that make up a band. Pairs of similarity J share a band with the probability
    1 - (1 - J^rows)^bands."""
    verify: Fraction | None = 0.75
    """Share of the signature that a pair found by a band must agree in; null takes every pair."""
    text_shingle: Annotated[int, Field(ge=1, le=1000)] = 5
    """Consecutive words of prose that are compared as one."""
    code_shingle: Annotated[int, Field(ge=1, le=1000)] = 5
    """Consecutive tokens of code (words and single signs) that are compared as one."""


@dataclass(frozen=True, config=STRICT)
class DecontaminateConfig:
    """Which benchmarks may not be in the corpus."""

    benchmarks: list[str] = field(default_factory=lambda: ["humaneval", "bfcl_v4"])
    """Built in: humaneval, bfcl_v4. Else paths of .jsonl or .txt files. Empty: none."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Drop a document that contains at least this share of a problem's n-grams."""
    ngram: PositiveInt | None = None
    """Words of an n-gram, for files; null: 13, or fewer where texts are short."""


@dataclass(frozen=True, config=STRICT)
class FimConfig:
    """Fill in the middle: which code documents are rearranged."""

    rate: Fraction = 0.5
    """Share of the code documents that are rearranged; 0 turns it off."""
    spm_share: Fraction = 0.5
    """Share of these that show the suffix first (SPM); the others are PSM."""
    min_chars: PositiveInt = 10
    """Documents with fewer characters are left alone."""
    seed: NonNegativeInt = 0
    """Seed of the cut positions."""


@dataclass(frozen=True, config=STRICT)
class RepositoryConfig:
    """Repositories as documents: the code files of one repository and language are one document,
    in which `fim.rate` rearranges one file (Hui et al. 2024, Qwen2.5-Coder, section 3.2.2)."""

    enabled: bool = False
    """Join files. A repository is what a row's `repository_field` names, a package, an archive, or
    a folder below the path of a source; files of none stay documents of their own."""
    max_bytes: Annotated[int, Field(ge=1, le=MAX_REPOSITORY_BYTES)] = 131_072
    """Bytes of UTF-8 up to which files join a document (names and paths included): what does not
    fit begins the next one."""
    depth: PositiveInt = 1
    """Folders that name a repository below the path of a source: 1 for PATH/NAME/..., 2 for
    PATH/OWNER/NAME/..."""


@dataclass(frozen=True, config=STRICT)
class ExecutorConfig:
    """Where the stages of the pipeline run. The corpus does not depend on it."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """`local`: processes of this machine. `slurm`: one job array per stage. `ray`: a Ray
    cluster."""
    workers: NonNegativeInt = 0
    """Tasks at the same time. 0: one per core (local; one in all where there is little to do), or
    as many as there is room for."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of datatrove's executor: partition, time, mem_per_cpu_gb, ..."""


@dataclass(frozen=True, config=STRICT)
class BuildConfig:
    """What a corpus is built from and how; unused when `data.path` is a finished corpus."""

    # DataConfig says for the whole section that it changes the corpus; a field that does not says
    # so here.

    sources: list[SourceConfig] = field(default_factory=list)
    """What the corpus is built from; empty when `data.path` is a corpus already built."""
    cache_dir: Annotated[str, Changes("nothing")] = "~/.cache/loopcoder"
    """Where corpora are built; a corpus is named by the hash of what it is built from."""
    tokenizer: str = "train"
    """`train` a byte-level BPE on the corpus, or the path of a tokenizer.json, or of a folder for
    transformers that has one; `checkpoint`: that of checkpoint.init_from, of a run that trains on
    conversations."""
    tokenizer_backend: Annotated[Literal["auto", "fast", "reference"], Changes("nothing")] = "auto"
    """What encodes: `fast` is fastokens, `reference` HF tokenizers; auto takes fast where it is
    installed. Their ids are compared before anything is encoded."""
    tokenizer_vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCAB_SIZE)] = 4096
    """Size of a trained tokenizer, its 64 special tokens included."""
    tokenizer_train_bytes: PositiveInt = 8_000_000
    """Bytes of text that a tokenizer is trained on, as much of each domain."""
    val_fraction: Fraction = 0.02
    """Share of documents held out for evaluation, chosen by the hash of their content; 0.9 is the
    most."""
    invalid_utf8: InvalidUtf8 = "error"
    """A document that is not UTF-8: stop with an error, replace the bytes and count, or drop it
    and count."""
    unreadable: Annotated[Literal["error", "skip"], Changes("corpus", since="2026-11-29")] = "error"
    """A file or folder of a source that this user may not read, or whose disk fails: stop with an
    error, or leave it out and count it."""
    language_classifier: str | None = None
    """Classifier of programming languages that `loopcoder data train-langid` wrote, for code whose
    language neither its row nor its name nor its first line tells."""
    language_confidence: Fraction = 0.5
    """Minimum confidence for accepting the classifier's label, also against a default of an
    extension that several languages share."""
    unknown_language: Literal["drop", "keep"] = "drop"
    """Code whose language nothing tells: leave it out and count it, or keep it as `unknown`."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    near_dedup: NearDedupConfig = field(default_factory=NearDedupConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    shares: Literal["supply", "published"] | dict[str, NonNegativeFloat] = "supply"
    """Weights of the languages of the code domain by tokens: as they come, as published for the
    paper's corpus, or a mapping, in which `*` stands for all languages that it does not name."""
    target_tokens: PositiveInt | None = None
    """Tokens of all domains; null: as many as the documents give in these proportions."""
    epochs: Epochs | dict[str, Epochs] = 1.0
    """How often a document may be in the corpus on average, for all domains or each; above 1,
    scarce languages are repeated."""
    fim: FimConfig = field(default_factory=FimConfig)
    repository: Annotated[RepositoryConfig, Changes("corpus", since="2026-11-29")] = field(
        default_factory=RepositoryConfig
    )
    chat: Annotated[ChatConfig, Changes("corpus", since="2026-11-30")] = field(
        default_factory=ChatConfig
    )
    shards: PositiveInt | None = None
    """Shards of each domain; null: as few as worker_bytes allows; of conversations one."""
    part_bytes: PositiveInt = 128_000_000
    """Bytes of input or text that one task works on; part of what names a corpus."""
    worker_bytes: PositiveInt = 1_000_000_000
    """Memory of one worker; a shard of both domains takes half of it."""
    executor: Annotated[ExecutorConfig, Changes("nothing")] = field(default_factory=ExecutorConfig)
    list_drops: Annotated[bool, Changes("nothing")] = True
    """Keep a list of everything that was left out, with its reason, in the folder of the corpus;
    some 12 MB for a million entries."""
    keep_work: Annotated[bool, Changes("nothing")] = False
    """Keep the folder of intermediate files when the corpus is complete."""

    @property
    def is_chat(self) -> bool:
        """Whether the corpus is one of conversations."""
        return any(source.kind == "chat" for source in self.sources)
