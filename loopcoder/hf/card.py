"""What stands in an export beside weights, config and code: tokenizer files and a model card."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopcoder.chat.templates import FILE as TEMPLATE_FILE
from loopcoder.chat.templates import built_in, end_ids, speaks_chatml
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.state import CheckpointState, Specials
from loopcoder.config.build import EODS, PADS
from loopcoder.config.schema import Config
from loopcoder.data.sampler import trained_stage
from loopcoder.errors import InputError
from loopcoder.metrics.started import started_from
from loopcoder.metrics.writer import EVENTS_FILE, read_metrics
from loopcoder.origin import commit_of


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.json, and what its special tokens are for."""

    text: str
    bos: str
    """Documents begin behind the end of another one, where an imported folder does not say else."""
    eos: str
    pad: str
    ids: dict[str, int]
    """Of the special tokens."""
    specials: Specials
    """Of the folder that was imported; it comes first."""

    @classmethod
    def of(cls, path: Path, specials: Specials | None = None) -> Tokenizer:
        """Read a tokenizer.json.

        Raises:
            InputError: it is damaged, or has no end of a document.
        """
        try:
            text = path.read_text(encoding="utf-8")
            ids = {str(t["content"]): int(t["id"]) for t in json.loads(text)["added_tokens"]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError.of(
                f"{path} cannot be read: {error}",
                "an export gets a copy of the tokenizer that the model was trained with",
                "another checkpoint, or a copy of the corpus's tokenizer.json in its place",
            ) from error
        specials = specials or Specials({}, {}, None, None)
        eos = _named("eos_token", specials, ids) or _first(EODS, ids)
        if eos is None:
            raise InputError.of(
                f"{path} has none of {', '.join(EODS)}",
                "generation ends with a token that ends a document",
                "a checkpoint that was trained with such a tokenizer",
            )
        bos = _named("bos_token", specials, ids) or eos
        pad = _named("pad_token", specials, ids) or _first(PADS, ids) or eos
        return cls(text, bos, eos, pad, ids, specials)

    @property
    def eos_ids(self) -> int | list[int]:
        """What ends a document, in config.json."""
        return self.specials.ids.get("eos_token_id", self.ids[self.eos])

    @property
    def bos_id(self) -> int:
        return _one(self.specials.ids.get("bos_token_id", self.ids[self.bos]))

    @property
    def given_pad_id(self) -> int | None:
        """What the imported folder's config.json has; None: nothing."""
        found = self.specials.ids.get("pad_token_id")
        return None if found is None else _one(found)

    @property
    def speaks_chatml(self) -> bool:
        return speaks_chatml(self.ids)

    @property
    def end_ids(self) -> list[int]:
        """What ends an answer: a document, and a turn where it speaks ChatML."""
        return end_ids(self.ids, self.eos_ids, self.eos)

    @property
    def chat_template(self) -> str | None:
        """In Jinja; None: it has no words for a chat."""
        return self.specials.chat_template or (built_in("chatml") if self.speaks_chatml else None)

    def files(self, max_length: int) -> dict[str, str]:
        """Return the content of the files by name, as transformers 4.57 and 5 read them.

        transformers 5 would save a class that 4.57 does not have.

        Args:
            max_length: Of a sequence, in tokens.
        """
        specials = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **specials,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
        }
        ends = self.end_ids
        generation = {
            "bos_token_id": self.bos_id,
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            "pad_token_id": self.ids[self.pad] if self.given_pad_id is None else self.given_pad_id,
        }
        template = self.chat_template
        out = {
            "tokenizer.json": self.text,
            "tokenizer_config.json": _json(about),
            "special_tokens_map.json": _json(specials),
            "generation_config.json": self.specials.generation_config or _json(generation),
        }
        return out | ({TEMPLATE_FILE: template} if template is not None else {})


def _named(name: str, specials: Specials, ids: Mapping[str, int]) -> str | None:
    """Return the token that an imported folder names, or has the id of; None: neither."""
    if specials.names.get(name) in ids:
        return specials.names[name]
    wanted = specials.ids.get(f"{name}_id")
    return next((text for text, i in ids.items() if wanted is not None and i == _one(wanted)), None)


def _first(names: Sequence[str], ids: Mapping[str, int]) -> str | None:
    return next((name for name in names if name in ids), None)


def _one(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def model_card(
    checkpoint: Checkpoint,
    config: Config,
    state: CheckpointState,
    content: dict[str, Any],
    size_bytes: int,
    version: str,
) -> str:
    """Return the README.md of an export.

    Args:
        content: Of config.json.
        size_bytes: Of the weights.
        version: Of loopcoder.
    """
    m, loops = config.model, config.model.num_loops
    width = 2 if content["dtype"] == "bfloat16" else 4
    loop_text = (
        f"{m.num_layers} layers run {loops} times with the same weights" if loops > 1
        else f"{m.num_layers} layers, run once: a dense transformer"
    )  # fmt: skip
    facts = [
        ("parameters", f"{size_bytes // width:,}"),
        ("loops (R)", f"{loops}: {loop_text}"),
        ("width, heads, K/V heads", f"{m.hidden_size}, {m.num_attention_heads}, {m.num_kv_heads}"),
        ("weights", f"{content['dtype']}, {_origin(config, state)}"),
        *(_training(checkpoint, config, state) if state.is_trained else []),
        *(_left_out(config) if state.is_trained else []),
        ("exported by", f"loopcoder {version}, commit {commit_of() or 'not recorded'}"),
    ]
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [code, looped-transformer, loopcoder]",
            "---",
            f"# {m.name}",
            "",
            "A Parallel Loop Transformer (LoopCoder-V2, arXiv 2606.18023) in the released format.",
            "",
            "| | |",
            "| --- | --- |",
            rows,
            "",
            *(_data(config, state) if state.is_trained else []),
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)',
            'model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True, '
            f'dtype="{content["dtype"]}")',
            'inputs = tokenizer("def add(a, b):", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
            "```",
            "",
            "The modeling file was tested in transformers 4.57.6, 5.23.0 and 5.24.0. "
            "It runs on one device. Batches are padded on the left.",
            "",
            *(_about_scales(content) if loops > 1 else []),
        ]
    )


def _origin(config: Config, state: CheckpointState) -> str:
    if state.is_trained:
        return f"trained in {config.precision.name}"
    return "imported, not trained by loopcoder"


def _training(
    checkpoint: Checkpoint, config: Config, state: CheckpointState
) -> list[tuple[str, str]]:
    origin = started_from(_run_dir(checkpoint), config.checkpoint.init_from)
    return [
        *([("started from", _run_and_step(origin))] if origin else []),
        ("optimizer step", f"{state.step:,}"),
        ("tokens trained", f"{state.position.tokens:,}"),
        ("sequence length", f"{config.data.seq_length:,}"),
        ("data", f"{config.data.name}, fingerprint {state.corpus}"),
        ("trained by commit", _commit_of_run(checkpoint) or "not recorded"),
    ]


def _left_out(config: Config) -> list[tuple[str, str]]:
    if not config.objective.has_gate(config.model.num_loops):
        return []
    why = "the format has none, and no logit depends on it"
    return [("left out", f"the exit gate (`objective.exit=true`): {why}")]


def _run_and_step(place: str) -> str:
    """Return the run and the step of a checkpoint's path or URL: where it lies says nothing to
    others, and may be nobody's business."""
    *folders, last = [part for part in place.split("/") if part not in ("", "checkpoints")]
    step = layout.NAME.fullmatch(last)
    return f"{folders[-1]}, step {int(step[1]):,}" if step and folders else last


def _about_scales(content: dict[str, Any]) -> list[str]:
    a, b = content["plt_emb_scale"], content["plt_hidden_scale"]
    shown = [f"{name} = {'null (1.0)' if x is None else x}" for name, x in (("a", a), ("b", b))]
    return [
        "## a and b",
        "",
        f"Later loops read a * embedding + b * previous output, here with {' and '.join(shown)} "
        "(`plt_emb_scale`, `plt_hidden_scale`).",
        "They are constants of the config, not weights: the weights work with these values only. "
        "How the values of the released LoopCoder-V2 (0.707 and 0.053) were found is not "
        "published, nor its code of training.",
        "",
    ]


def _data(config: Config, state: CheckpointState) -> list[str]:
    """Say what the tokens were, as far as the run counted them."""
    stage = config.stages[trained_stage(config.stages, state.position)]
    mixture = ", ".join(f"{name} {share:g}" for name, share in stage.mixture.items())
    lines = ["## Data", "", f"Mixture of the last stage, by weight: {mixture}.", ""]
    if state.ledger is not None and state.ledger.entries:
        tokens: dict[tuple[str, str], int] = defaultdict(int)
        for entry in state.ledger.entries:
            tokens[entry.domain, entry.language or ""] += entry.tokens
        lines += ["| domain | language | tokens |", "| --- | --- | --- |"]
        for (domain, language), count in sorted(tokens.items(), key=lambda item: -item[1]):
            lines.append(f"| {domain} | {language} | {count:,} |")
        lines.append("")
    return lines


def _run_dir(checkpoint: Checkpoint) -> Path:
    return checkpoint.path.resolve().parents[1]


def _commit_of_run(checkpoint: Checkpoint) -> str | None:
    """Return the commit that the run says that it was trained by, where its folder is there."""
    events = _run_dir(checkpoint) / EVENTS_FILE
    if not events.is_file():
        return None
    commits = [e.get("commit") for e in read_metrics(events) if e.get("kind") == "run_started"]
    return next((str(commit) for commit in reversed(commits) if commit), None)
