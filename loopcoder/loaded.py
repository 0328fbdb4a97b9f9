"""A trained model in one process, for notebooks and for evaluation: `loopcoder.load(DIR)`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.backends import Backends, detect
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.load import load as load_weights
from loopcoder.config.compose import compose, load_config
from loopcoder.config.schema import Config, ParallelConfig
from loopcoder.config.this_machine import for_this_machine
from loopcoder.data.places import TOKENIZER
from loopcoder.data.sampler import trained_stage
from loopcoder.errors import InputError, counted
from loopcoder.hf.opened import checkpoint_at
from loopcoder.infer.arguments import checked, prompts_in
from loopcoder.metrics.writer import EVENTS_FILE, METRICS_FILE, read_metrics
from loopcoder.model.documents import Documents
from loopcoder.parallel import mcore

if TYPE_CHECKING:
    from loopcoder.config.types import SpecialTokensInText
    from loopcoder.infer.chat_answer import ChatAnswer
    from loopcoder.infer.generator import Generator
    from loopcoder.train.state import TrainState


def load(
    path: str | Path,
    *,
    num_loops: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str | torch.device | None = None,
) -> LoadedRun:
    """Load the weights of a run into this process, on its GPU if it has one.

    No launcher is needed: a world of one process is started, which opens no port. Weights of any
    layout fit, and any precision and layer specification of a machine that has other packages.

    Args:
        path: A checkpoint, a folder of them, or a run's folder: the newest complete one. A URL of
            the same in a store is fetched to the cache ($LOOPCODER_CACHE or ~/.cache/loopcoder),
            and a folder for transformers, exported or released, is imported to it.
        num_loops: Loops to run with instead of those that were trained.
        precision: `fp32` or `bf16`; None: fp32 on a CPU, and on a GPU what was trained.
        device: `cuda` or `cpu`, only to insist on it: it is the first visible GPU where there is
            one, else the CPU.

    Raises:
        InputError: an argument is wrong, there is no complete checkpoint, it is damaged, or another
            world is running.
    """
    if not isinstance(path, str | os.PathLike):
        why = "it is the folder of a run or of a checkpoint"
        raise InputError.of(f"load({path!r})", why, 'loopcoder.load("runs/NAME")')
    backends = detect()
    if device is not None:
        _check_device(str(device), backends)
    checkpoint = checkpoint_at(str(path), _cache())
    trained = load_config(checkpoint.path / layout.CONFIG)
    config = for_this_machine(trained, backends, num_loops, precision)
    return LoadedRun(checkpoint, trained, config, _state(checkpoint, config, _alone()))


def load_part(checkpoint: Checkpoint, config: Config, ranks: mcore.Ranks) -> LoadedRun:
    """Load this rank's part of a model in a layout. All ranks must call it.

    Args:
        config: Of `for_this_machine` (config/this_machine.py), with the layout of the ranks.
        ranks: Of the world that is running.

    Raises:
        InputError: the checkpoint is damaged.
    """
    trained = load_config(checkpoint.path / layout.CONFIG)
    return LoadedRun(checkpoint, trained, config, _state(checkpoint, config, ranks))


def _cache() -> Path:
    return Path(compose([]).data.build.cache_dir).expanduser()


def _check_device(device: str, backends: Backends) -> None:
    """Raise InputError unless `device` is that on which this process computes."""
    here = "cuda" if backends.has_gpu else "cpu"
    if device in (here, f"{here}:0"):
        return
    why, fix = f"this process computes on {here}", "leave device out"
    if device == "cpu":
        fix = "export CUDA_VISIBLE_DEVICES= before Python starts"
    elif backends.has_gpu and device.startswith("cuda:"):
        fix = f"export CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} before Python starts"
    raise InputError.of(f"device={device}", why, fix)


@cache
def _alone() -> mcore.Ranks:
    """Start a world of this process, once for all models that are loaded."""
    mcore.prepare()
    if not dist.is_initialized():
        mcore.start_alone()
    elif dist.get_world_size() > 1:
        raise InputError.of(
            f"a world of {dist.get_world_size()} processes is running",
            "a model is loaded into one process",
            "load it in a process that torchrun has not started",
        )
    return mcore.initialise(ParallelConfig(), seed=0)


def _state(checkpoint: Checkpoint, config: Config, ranks: mcore.Ranks) -> TrainState:
    from loopcoder.train.compute import ComputeTime
    from loopcoder.train.state import TrainState, build_network

    saved = checkpoint.state()
    network, mcore_config = build_network(config, ranks, saved.vocab_size)
    stage = config.stages[trained_stage(config.stages, saved.position)]
    network.set_rope_theta(stage.rope_theta)
    load_weights(checkpoint, network, None, config)
    network.eval()
    compute = ComputeTime(ranks.device)
    return TrainState(ranks, mcore_config, network, None, None, compute, chunks=[])


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """The model of a checkpoint, and what its run has recorded."""

    checkpoint: Checkpoint
    trained: Config
    """The config of the run."""
    config: Config
    """That with which this process runs the model."""
    state: TrainState

    def __repr__(self) -> str:
        m = self.config.model
        return f"<LoadedRun {m.name}, R = {m.num_loops}, step {self.step}: {self.checkpoint.path}>"

    @property
    def model(self) -> Any:
        """The PLTModel, in evaluation mode."""
        return self.state.network

    @property
    def step(self) -> int:
        return self.checkpoint.step

    @property
    def run_dir(self) -> Path:
        """Folder of the run, if the checkpoint still lies in it."""
        return self.checkpoint.path.resolve().parents[1]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the run was trained with, a `tokenizers.Tokenizer`."""
        from loopcoder.data.tokenizer import read_tokenizer

        return read_tokenizer(self._tokenizer_file)

    @cached_property
    def _tokenizer_file(self) -> Path:
        copied = self.checkpoint.path / TOKENIZER
        path = copied if copied.is_file() else Path(self.checkpoint.state().tokenizer_path)
        if not self.has_tokenizer:
            raise InputError.of(
                f"{self.checkpoint.place} was imported without a tokenizer",
                "a text is read as the ids of its tokens, which only a tokenizer knows",
                "token ids instead of a text, or import it with tokenizer=PATH of its "
                "tokenizer.json, or with that file in its folder",
            )
        if not path.is_file():
            raise InputError.of(
                f"{self.checkpoint.path} has no {TOKENIZER}, and {path} is gone",
                "checkpoints have a copy since 2026-11-29; older ones name that of their corpus",
                f"put the tokenizer of the corpus at {copied}",
            )
        return path

    @property
    def has_tokenizer(self) -> bool:
        """Whether its text can be read; weights may be imported without."""
        return self.checkpoint.state().has_tokenizer

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that there are: rows of the head without its padding. Of weights that were
        imported without a tokenizer, rows of the folder."""
        rows = self.checkpoint.state().tokens
        if rows is not None and not self.has_tokenizer:
            return rows
        from loopcoder.data.tokenizer import vocabulary_of

        return vocabulary_of(self.tokenizer, rows)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of the run's metrics.jsonl; docs/configuration.md names the fields."""
        return _lines(self.run_dir / METRICS_FILE)

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of the run's events.jsonl."""
        return _lines(self.run_dir / EVENTS_FILE)

    @torch.no_grad()
    def logits(self, text: str | Sequence[int], *, every_loop: bool = False) -> Tensor:
        """Run the model on a text, or on token ids.

        Returns:
            logits in fp32 of the token after each one, [S, vocabulary]; with `every_loop` those of
            the head on the output of each loop as well, [R, S, vocabulary].
        """
        ids = self._ids(text, at_least=1)
        tokens, documents = self._row(ids)
        out = self.state.network(tokens, documents, None, every_loop=every_loop)
        return out.squeeze(-2).float()[..., : self.vocabulary]

    @torch.no_grad()
    def loss(self, text: str | Sequence[int]) -> Tensor:
        """Return the loss of every token of a text but the first, after each loop, in nats.
        [R, S-1]"""
        ids = self._ids(text, at_least=2)
        tokens, documents = self._row(ids[:-1])
        labels, _ = self._row(ids[1:])
        out: Tensor = self.state.network(tokens, documents, labels, every_loop=True)
        return out[:, 0].float()

    def bits_per_byte(self, text: str) -> float:
        """Return the loss of a text after the last loop, in bits per byte of UTF-8."""
        return float(self.loss(text)[-1].sum()) / math.log(2) / len(text.encode())

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_end: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        stream: bool = False,
        kernels: Literal["auto", "stock", "cuda"] = "auto",
        cuda_graphs: Literal["auto", "off"] = "auto",
    ) -> Any:
        """Continue a text, or several at once. docs/decoding.md says how tokens are drawn.

        Args:
            prompt: A text or token ids, or a list of such. An empty one begins as a document does.
            max_tokens: Most tokens of an answer.
            temperature: 0: always the most probable token; else the limits top_k (0: none), top_p
                and min_p apply in this order.
            seed: Of the draws, in each answer; None: another one each time.
            stop: Texts that end an answer, and are left out of it; the name of a special token
                stands for that token.
            ignore_end: Go on past tokens that end a document or a turn of a chat.
            logprobs: Most probable tokens that are told at each token, 0 or more, with its own
                log-probability; None: none of it.
            prompt_logprobs: The same at the tokens of the prompt.
            stream: Return the answer to one prompt piece by piece.
            kernels: stock parts or the CUDA extension; auto: where it can run the model.
            cuda_graphs: Whether steps on a GPU are launched as graphs; auto: they are.

        Returns:
            an Answer with text, tokens, finish; a list of them for a list of prompts; with `stream`
            an iterator of Pieces (infer/request.py).

        Raises:
            InputError: a prompt and its answer are longer than the model has positions, an argument
                is wrong, or there is no memory for the cache.
        """
        asked = checked(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop,
            ignore_end=ignore_end,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            kernels=kernels,
            cuda_graphs=cuda_graphs,
        )
        several, is_one = prompts_in(prompt)
        if stream and not is_one:
            why = "pieces of several answers would come in any order"
            raise InputError.of("stream=True for several prompts", why, "one prompt, or no stream")
        generator = self._generator(asked.kernels, asked.cuda_graphs)
        prompts = generator.prompts
        requests = [
            asked.request(prompts.of_ids(self._ids(one, at_least=0)), prompts) for one in several
        ]
        if not requests:
            return []
        engine = generator.engine_for(requests)
        if stream:
            return engine.stream(requests[0])
        answers = engine.generate(requests)
        return answers[0] if is_one else answers

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
        special_tokens: SpecialTokensInText = "refuse",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> ChatAnswer:
        """Answer a conversation, written with the chat template of the weights.

        Args:
            messages: In OpenAI's form, with `role` and `content`, also `reasoning_content`,
                `tool_calls` and results of tools; a str is one message of the user.
            tools: JSON schemas of functions, in OpenAI's form.
            chat_template_kwargs: Options of the template, as `{"enable_thinking": False}`.
            special_tokens: refuse messages and tools whose text spells a special token, or keep it,
                as that token.
            max_tokens: And the following as of `generate`.

        Returns:
            content, reasoning, tool_calls and problems of what is not well-formed
            (chat/calls.py), with the text that they were read from and why it ended.

        Raises:
            InputError: as `generate`; or there is no template, or it does not take the
                conversation, tools or options; or a text spells a special token.
        """
        from loopcoder.infer.chat_answer import ChatAnswer

        asked = checked(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop,
        )
        generator = self._generator(asked.kernels, asked.cuda_graphs)
        prompts = generator.prompts
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        text = prompts.rendered(said, tools, chat_template_kwargs, special_tokens)
        request = asked.request(prompts.of_text(text), prompts, in_chat=True)
        [answer] = generator.engine_for([request]).generate([request])
        return ChatAnswer.of(answer, prompts.reader(text, tools))

    @cached_property
    def _generators(self) -> dict[tuple[str, str], Generator]:
        """The last one, by its arguments."""
        return {}

    def _generator(
        self, kernels: Literal["auto", "stock", "cuda"], cuda_graphs: Literal["auto", "off"]
    ) -> Generator:
        """Return what answers prompts with the weights of `model`, which are not copied."""
        kept, key = self._generators, (kernels, cuda_graphs)
        if key not in kept:
            kept.clear()  # its memory is free before the next one takes some
            kept[key] = self._new_generator(kernels, cuda_graphs)
        return kept[key]

    def _new_generator(
        self, kernels: Literal["auto", "stock", "cuda"], cuda_graphs: Literal["auto", "off"]
    ) -> Generator:
        from loopcoder.hf.card import Tokenizer
        from loopcoder.infer.generator import Generator
        from loopcoder.infer.loading import decoder_of
        from loopcoder.infer.prompts import Prompts

        if self.state.ranks.world_size > 1:
            raise InputError.of(
                f"this process has a part of the model, of {self.state.ranks.world_size}",
                "generate() runs the whole of it",
                "loopcoder.load(DIR), or loopcoder generate checkpoint=DIR parallel=tp2",
            )
        state, model = self.checkpoint.state(), self.config.model
        stage = self.config.stages[trained_stage(self.config.stages, state.position)]
        model = replace(model, rope_theta=stage.rope_theta)
        special = Tokenizer.of(self._tokenizer_file, state.specials)
        network, vocabulary = self.model, self.vocabulary  # not self, which would hold itself
        return Generator(
            lambda places, length: decoder_of(
                network,
                model,
                vocabulary,
                num_places=places,
                max_length=length,
                cuda_graphs=cuda_graphs,
                kernels=kernels,
            ),
            Prompts(self.tokenizer, special),
            vocabulary=vocabulary,
            longest=model.max_position_embeddings,
        )

    def _ids(self, text: str | Sequence[int], at_least: int) -> list[int]:
        ids = text
        if isinstance(text, str):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        try:
            wrong = [i for i in ids if not 0 <= int(i) < self.vocabulary]
        except (TypeError, ValueError) as error:
            why = "the model reads a text, or a list of token ids"
            raise InputError.of(f"{type(text).__name__}: {text!r}"[:80], why, "a str") from error
        if wrong:
            why = f"the tokenizer has the ids 0 to {self.vocabulary - 1}"
            raise InputError.of(f"token id {wrong[0]}", why, "run.tokenizer.encode(text).ids")
        if len(ids) < at_least:
            raise InputError.of(
                f"the text has {counted(len(ids), 'token')}",
                f"it needs {at_least}",
                "a longer text",
            )
        return [int(i) for i in ids]

    def _row(self, ids: list[int]) -> tuple[Tensor, Documents]:
        device = self.state.ranks.device
        row = torch.tensor([ids], device=device)
        return row, Documents.whole_rows(1, len(ids), device)


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []
