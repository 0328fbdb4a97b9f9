"""`loopcoder generate`: what a model writes after a prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launch.nodes import refuse_other_launch
from launch.torchrun import start_workers
from loopcoder.backends import detect, refuse_missing
from loopcoder.cli.arguments import fields_of, parse_arguments, rank, say_aside, section_of
from loopcoder.cli.asked_weights import AskedWeights, place_in
from loopcoder.cli.given_conversations import conversation_of
from loopcoder.cli.given_prompts import KEYS, GivenPrompt, handed_on, split_prompts
from loopcoder.cli.renamed_fields import renamed
from loopcoder.config.check import check_layout
from loopcoder.config.generation import GenerateConfig
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

if TYPE_CHECKING:
    from loopcoder.cli.answers import Answers
    from loopcoder.cli.transcripts import Transcript
    from loopcoder.infer.prompts import Prompts
    from loopcoder.infer.request import Request
    from loopcoder.infer.sources import Source

HELP = """\
Continue a text with a trained model: all loops of a token run at once, as the model was trained.

usage: loopcoder generate checkpoint=DIR|URL|FOLDER prompt=TEXT [prompt=...] [file=FILE|-]
                          [messages=FILE|-] [--chat] [--json] [generate.KEY=VALUE ...]
                          [key=value ...]

  loopcoder generate checkpoint=runs/plt_tiny-r2-cc8f20c8a9 prompt='def main():'
  loopcoder generate checkpoint=DIR file=main.py                 continue a file
  loopcoder generate checkpoint=DIR file=- < main.py             or standard input
  loopcoder generate checkpoint=DIR prompt=A prompt=B --json     several at once, an object each
  loopcoder generate checkpoint=DIR prompt=A generate.temperature=0.8 generate.top_p=0.95
  loopcoder generate checkpoint=FOLDER prompt='Why?' --chat      weights for transformers, in a chat
  loopcoder generate checkpoint=DIR --chat messages=FILE.json    a conversation, with its tools
  loopcoder generate checkpoint=DIR prompt=A model.num_loops=3   with another number of loops
  loopcoder generate checkpoint=DIR prompt=A parallel.tp=2       a model that one GPU does not hold

  --chat    a prompt is a message of the user, written with the model's chat template;
            messages=FILE has a whole conversation: [{{"role": ..., "content": ...}}, ...], or
            {{"messages": [...], "tools": [...]}}. Reasoning and calls have headings of their own
  --json    an object for each prompt: text, ids, finish (stop, length or cancelled), stopped_by;
            with --chat also content, reasoning, tool_calls, and problems of what is not well-formed
{fields}

Answers go to standard output as they come, without the prompt; to standard error goes their speed,
and what makes them poor: a prompt longer than what was trained, a chat with weights of no chat.
An empty prompt begins as a document does. Fields that may be given besides: model.num_loops,
precision, parallel.tp, data.build.cache_dir. docs/decoding.md has more."""

_FIELDS = {
    "max_tokens=": "generate.max_tokens=",
    "num_places=": "generate.places=",
    "kernels=": "generate.kernels=",
}
"""Arguments of a decoder and of requests, and what they are called here."""


def run(argv: list[str]) -> int:
    """Answer, or start the processes that do."""
    options = [a for a in argv if a in ("--chat", "--json")]
    arguments = parse_arguments([a for a in argv if a not in options], takes=["--chat", "--json"])
    if arguments.help:
        print(HELP.format(fields=fields_of("generate", GenerateConfig)))
        return EXIT_DONE
    interrupted_by_signals("before the end of the answer")
    place, others = place_in(arguments.overrides, "generate", "prompt='def main():'")
    settings, others = section_of(others, "generate", GenerateConfig)
    prompts, others = split_prompts(others)
    if not prompts:
        raise InputError.of(
            f"loopcoder generate checkpoint={place}",
            "there is no prompt",
            f"loopcoder generate checkpoint={place} prompt='def main():'",
        )
    asked = AskedWeights.of(others, arguments.config_dir)
    is_chat = "--chat" in options
    if not is_chat:
        _refuse_parts_of_chats(settings, prompts)
    refuse_missing()
    with ended_at_once():
        from loopcoder.cli.answers import Answers
        from loopcoder.cli.prompt_notes import notes_on
        from loopcoder.infer.prompts import Prompts
        from loopcoder.infer.sources import Asked, source_at
    model = Asked(detect(), asked.num_loops, asked.precision, asked.parallel)
    source = source_at(place, asked.cache, model)
    made = Prompts.of_source(source, settings.tool_format)
    chats = [_Chat.of(one, made, settings) for one in prompts] if is_chat else []
    texts = [chat.text for chat in chats] if is_chat else [one.text for one in prompts]
    requests = [_request(text, made, settings, is_chat=is_chat) for text in texts]
    _check(requests, source, made)
    if _is_to_launch(source.config):
        return _launch(source, prompts, arguments.asked, options)
    if rank() == 0:
        for note in notes_on(prompts, requests, source, made, is_chat=is_chat):
            say_aside(note)
    printed = Answers(prompts, [chat.transcript for chat in chats], as_json="--json" in options)
    _answer(printed, requests, source, made, settings)
    return EXIT_DONE


def _is_to_launch(config: Config) -> bool:
    """Say whether other processes are to do the work; refuse a layout that cannot be.

    Raises:
        InputError: the model or this machine cannot be split so, or a launcher started other
            processes.
    """
    parallel = config.parallel
    check_layout(config, parallel.tp, detect())
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if launched:
        refuse_other_launch(parallel, os.environ)
        if int(os.environ["WORLD_SIZE"]) != parallel.tp:
            raise InputError.of(
                f"{os.environ['WORLD_SIZE']} processes for parallel.tp={parallel.tp}",
                "each has a part of the one model",
                f"parallel.tp={os.environ['WORLD_SIZE']}, or no launcher",
            )
    return parallel.tp > 1 and not launched


def _launch(
    source: Source, prompts: Sequence[GivenPrompt], asked: Sequence[str], options: Sequence[str]
) -> int:
    """Start a process for each part of the model; all read the prompts and weights that are read
    here, though a run that trains has newer ones by then."""
    kept = [a for a in asked if a.partition("=")[0] not in ("checkpoint", *KEYS)]
    with handed_on(prompts) as given:
        command = ["generate", f"checkpoint={source.place}", *given, *kept, *options]
        return start_workers(source.config, source.config.parallel.tp, command)


def _refuse_parts_of_chats(c: GenerateConfig, prompts: Sequence[GivenPrompt]) -> None:
    """Refuse what only a conversation has."""
    conversation = next((f"messages={p.file}" for p in prompts if p.is_conversation), None)
    asked = {
        f"generate.system={c.system}": c.system is not None,
        f"generate.chat_template_kwargs={c.chat_template_kwargs}": c.chat_template_kwargs,
        f"generate.tool_format={c.tool_format}": c.tool_format != "auto",
        f"generate.special_tokens={c.special_tokens}": c.special_tokens != "refuse",
        f"{conversation}": conversation is not None,
    }
    for fact, is_asked in asked.items():
        if is_asked:
            raise InputError.of(fact, "it is a part of a conversation", "--chat, or leave it out")


@dataclass(frozen=True)
class _Chat:
    """A conversation that is to be continued."""

    text: str
    """As the model reads it."""
    transcript: Transcript

    @classmethod
    def of(cls, given: GivenPrompt, prompts: Prompts, c: GenerateConfig) -> _Chat:
        from loopcoder.cli.transcripts import Transcript

        messages, tools = conversation_of(given, c.system)
        text = prompts.rendered(messages, tools, c.chat_template_kwargs, c.special_tokens)
        return cls(text, Transcript(prompts.reader(text, tools)))


def _request(text: str, prompts: Prompts, c: GenerateConfig, *, is_chat: bool) -> Request:
    from loopcoder.infer.request import Request, Sampling

    return Request(
        prompts.of_text(text),
        c.max_tokens,
        Sampling(c.temperature, c.top_k, c.top_p, c.min_p, c.seed),
        tuple(c.stop),
        frozenset() if c.ignore_end else prompts.end_ids,
        shown=prompts.shown if is_chat else frozenset(),
    )


def _check(requests: Sequence[Request], source: Source, prompts: Prompts) -> None:
    """Refuse what can never be answered, before weights are read."""
    from loopcoder.data.tokenizer import vocabulary_of
    from loopcoder.infer.answerable import check_request

    tokens = vocabulary_of(prompts.tokenizer, source.tokens)
    for request in requests:
        with renamed(_FIELDS):
            check_request(request, tokens, source.model.max_position_embeddings)


def _answer(
    answers: Answers,
    requests: Sequence[Request],
    source: Source,
    made: Prompts,
    settings: GenerateConfig,
) -> None:
    """Load the weights, with room for what is asked, and print the answers."""
    from loopcoder.infer.engine import Engine
    from loopcoder.infer.loading import load_decoder
    from loopcoder.infer.world import world_of

    with world_of(source.config.parallel) as world:
        with renamed(_FIELDS):
            loaded = load_decoder(
                source,
                num_places=min(len(requests), settings.places),
                max_length=max(len(r.ids) + r.max_tokens for r in requests),
                split=world.split,
                cuda_graphs=settings.cuda_graphs,
                kernels=settings.kernels,
            )
        with world.leading(loaded.decoder) as decoder:
            if decoder is not None:
                waiting = len(requests)
                engine = Engine(decoder, made.tokenizer, made.end_ids, max_waiting=waiting)
                answers.run(engine, requests)
