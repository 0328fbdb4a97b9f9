"""`loopcoder evaluate tasks=...`: what models reach in tasks of lm-eval, in HumanEval, and in
conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.backends import detect, refuse_missing
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.cli.arguments import say_aside, section_of
from loopcoder.cli.run_names import name_of, run_of
from loopcoder.config.benchmarks import ChatTaskConfig, HumanEvalConfig, TasksConfig
from loopcoder.config.compose import compose
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.evaluate.offline import offline
from loopcoder.metrics.drawing import require_matplotlib
from loopcoder.storage.folders import make_folder
from loopcoder.storage.remote import is_stored
from loopcoder.storage.signals import ended_at_once

if TYPE_CHECKING:
    from loopcoder.checkpoint.format import Checkpoint
    from loopcoder.evaluate.chat import Exam, HeldOutTurns
    from loopcoder.evaluate.human_eval import Problems
    from loopcoder.evaluate.in_process import InProcess
    from loopcoder.evaluate.results import Result
    from loopcoder.evaluate.server import Server
    from loopcoder.evaluate.tasks import Tasks
    from loopcoder.infer.sources import Source

_OUTPUT = "evaluation"
SECTIONS = ("tasks.", "human_eval.", "chat.")
"""Beginnings of the fields that say how tasks are run."""
_KEYS = ("checkpoint", "server", "tasks", "output", "model.num_loops", "precision")


@dataclass(frozen=True)
class _Subject:
    """Weights that are evaluated, and with how many loops."""

    name: str
    source: Source
    weights: Checkpoint | Path
    """A path is a folder for transformers."""

    @property
    def step(self) -> int | None:
        """Of a checkpoint."""
        return None if isinstance(self.weights, Path) else self.weights.step

    @property
    def about(self) -> dict[str, Any]:
        return {
            "checkpoint": self.source.place,
            "weights": self.source.identity,
            "step": self.step,
            "num_loops": self.source.model.num_loops,
            "precision": self.source.config.precision.name,
        }


@dataclass(frozen=True)
class _Benchmarks:
    """What every model is put to."""

    config: TasksConfig
    human_eval: HumanEvalConfig
    tasks: Tasks | None
    """Of lm-eval."""
    problems: Problems | None
    """Of HumanEval."""
    chat: ChatTaskConfig | None = None
    """None: no held-out conversations."""
    turns: HeldOutTurns | None = None
    """What is asked in these; None: those of the models' corpora, which are not known yet."""

    @property
    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {"tasks": asdict(self.config)}
        if self.problems is not None:
            found["human_eval"] = asdict(self.human_eval)
        if self.chat is not None:
            assert self.turns is not None
            found["chat"] = asdict(self.chat) | {"conversations": self.turns.fingerprint}
        return found


def run(overrides: Sequence[str], *, as_json: bool) -> int:
    """Evaluate models one after the other; print a table or, `as_json`, an object for each."""
    results = evaluate_tasks(overrides)
    _show(results, _Given.of(overrides).output, as_json=as_json)
    return EXIT_DONE


def evaluate_tasks(overrides: Sequence[str]) -> list[Result]:
    """Evaluate models one after the other, and write what each reaches.

    Raises:
        InputError: anything that is asked for is not there.
    """
    given = _Given.of(overrides)
    refuse_missing()
    require_matplotlib()
    offline()
    config, human_eval, chat = _sections(given.others)
    with ended_at_once():
        benchmarks = _benchmarks(given.tasks, config, human_eval, chat)
        if given.server is not None and benchmarks.chat is not None:
            raise InputError.of(
                f"tasks=chat of server={given.server}",
                "answers are read as this process writes them, special tokens and all",
                "checkpoint= of the served weights, or another task",
            )
        server, subjects = None, []
        if given.server is None:
            cache = Path(compose([]).data.build.cache_dir).expanduser()
            subjects = _subjects(given, cache)
            if benchmarks.chat is not None and benchmarks.turns is None:
                from loopcoder.cli.evaluate_chat import conversations_of

                models = {subject.name: subject.weights for subject in subjects}
                turns = conversations_of(models, config.limit, cache)
                benchmarks = replace(benchmarks, turns=turns)
        else:
            from loopcoder.evaluate.server import Server

            server = Server(given.server, config.name, config.places)
    output = Path(given.output).expanduser()
    make_folder(output, "output")
    if server is not None:
        return [_of_server(server, benchmarks, output)]
    return [_of_weights(s, benchmarks, output) for s in subjects]


def check_tasks(names: str, overrides: Sequence[str]) -> bool:
    """Raise InputError for tasks, by `tasks=` and their sections, that could not be run on any
    model here.

    Returns whether each model has to have a corpus of conversations of its own.
    """
    refuse_missing()
    require_matplotlib()
    offline()
    found = _benchmarks(_names(names), *_sections(overrides))
    return found.chat is not None and found.turns is None


def _sections(overrides: Sequence[str]) -> tuple[TasksConfig, HumanEvalConfig, ChatTaskConfig]:
    config, others = section_of(overrides, "tasks", TasksConfig)
    human_eval, others = section_of(others, "human_eval", HumanEvalConfig)
    chat, others = section_of(others, "chat", ChatTaskConfig)
    if others:
        raise InputError.of(
            " ".join(others),
            f"tasks are run with {', '.join(_KEYS)}, {', '.join(f'{s}*' for s in SECTIONS[:-1])} "
            f"and {SECTIONS[-1]}*",
            "leave it out",
        )
    return config, human_eval, chat


@dataclass(frozen=True)
class _Given:
    """What stood behind the verb."""

    checkpoints: list[str]
    server: str | None
    tasks: list[str]
    output: str
    loops: list[int | None]
    precision: Any
    others: list[str]

    @classmethod
    def of(cls, overrides: Sequence[str]) -> _Given:
        values: dict[str, list[str]] = {key: [] for key in _KEYS}
        others = []
        for override in overrides:
            key, _, value = override.partition("=")
            if key not in values:
                others.append(override)
            elif not value:
                raise InputError.of(override, "it names nothing", f"{key}=...")
            elif values[key] and key != "checkpoint":
                raise InputError.of(override, f"{key}={values[key][0]} is given already", "one")
            else:
                values[key].append(value)
        if bool(values["checkpoint"]) == bool(values["server"]):
            raise InputError.of(
                "loopcoder evaluate " + " ".join(overrides),
                "models are named by checkpoint=, one or several, or one by server=",
                "loopcoder evaluate checkpoint=DIR tasks=human_eval",
            )
        loops = [_loops(text) for text in ",".join(values["model.num_loops"]).split(",")]
        precision = next(iter(values["precision"]), None)
        if precision not in (None, "fp32", "bf16"):
            raise InputError.of(
                f"precision={precision}", "models decode in fp32 or bf16", "precision=bf16"
            )
        if values["server"] and (loops != [None] or precision is not None):
            raise InputError.of(
                " ".join(overrides),
                "loops and precision of a server are its own",
                "loopcoder serve checkpoint=DIR model.num_loops=N",
            )
        names = _names(values["tasks"][0])
        server, output = next(iter(values["server"]), None), next(iter(values["output"]), _OUTPUT)
        return cls(values["checkpoint"], server, names, output, loops, precision, others)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name for name in text.split(",") if name))


def _loops(text: str) -> int | None:
    if not text:
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise InputError.of(
        f"model.num_loops={text}", "it is a number of loops, or several", "model.num_loops=1,2,3"
    )


def _benchmarks(
    names: Sequence[str],
    config: TasksConfig,
    human_eval: HumanEvalConfig,
    chat: ChatTaskConfig,
) -> _Benchmarks:
    """Find all that is asked, before a model is loaded."""
    from loopcoder.evaluate import chat as conversations
    from loopcoder.evaluate import human_eval as programs
    from loopcoder.evaluate.tasks import Tasks

    problems = None
    if programs.TASK in names:
        problems = programs.problems(config.limit)
        programs.check_settings(human_eval)
    of_lm_eval = [name for name in names if name not in (programs.TASK, conversations.TASK)]
    tasks = Tasks(of_lm_eval, config) if of_lm_eval else None
    asks_chat, turns = conversations.TASK in names, None
    if asks_chat and chat.corpus is not None:
        turns = conversations.held_out([Path(chat.corpus).expanduser()], config.limit)
    return _Benchmarks(config, human_eval, tasks, problems, chat if asks_chat else None, turns)


def _subjects(given: _Given, cache: Path) -> list[_Subject]:
    from loopcoder.hf.folder import is_folder  # which imports torch
    from loopcoder.infer.sources import Asked, source_at

    backends, found = detect(), []
    for place in given.checkpoints:
        folder = Path(place).expanduser()
        is_export = not is_stored(place) and is_folder(folder)
        weights = folder if is_export else find_at(place, cache)
        step = None if isinstance(weights, Path) else weights.step
        name = name_of(str(folder)) if isinstance(weights, Path) else run_of(weights)
        for loops in given.loops:
            source = source_at(weights, cache, Asked(backends, loops, given.precision))
            parts = (name, step, loops and f"r{loops}")
            called = "-".join(str(p) for p in parts if p is not None)
            found.append(_Subject(called, source, weights))
    names = [subject.name for subject in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError.of(
            f"two models are called {twice}",
            "each has a folder of its own below output=",
            "a command for each, with output=DIR of its own",
        )
    return found


def _of_weights(subject: _Subject, asked: _Benchmarks, output: Path) -> Result:
    """Load a model, and put it to everything."""
    from loopcoder.evaluate.in_process import InProcess
    from loopcoder.evaluate.results import Result

    config, exam = asked.config, None
    say_aside(f"evaluate: {subject.name}")
    if asked.chat is not None:
        from loopcoder.evaluate.chat import Exam
        from loopcoder.infer.prompts import Prompts

        assert asked.turns is not None
        exam = Exam(Prompts.of_source(subject.source), asked.turns, asked.chat)
    room = 0 if exam is None else exam.room
    model = InProcess.of_source(subject.source, config.places, config.max_length, room)
    about = subject.about | {"max_length": model.max_length}
    result, lm = Result(subject.name, about, asked.settings), None
    if asked.tasks is not None:
        from loopcoder.evaluate.lm import InProcessLM

        lm = InProcessLM(model, config.seed)
    if exam is not None:
        model.check_room(exam.requests, "chat.max_tokens")
    _put(result, model, lm, asked, output)
    if exam is not None:
        _converse(result, model, exam, output / result.name, keeps_samples=config.samples)
    return result


def _converse(
    result: Result, model: InProcess, exam: Exam, folder: Path, *, keeps_samples: bool
) -> None:
    """Have a model write the answers of held-out conversations."""
    from loopcoder.evaluate.chat import TASK
    from loopcoder.evaluate.results import write, write_samples

    result.metrics[TASK], said = exam.put_to(model)
    result.documents[TASK] = len(said)
    if keeps_samples:
        write_samples({TASK: [one.as_dict() for one in said]}, folder)
    write(result, folder)


def _of_server(server: Server, asked: _Benchmarks, output: Path) -> Result:
    from loopcoder.evaluate.results import Result

    config = asked.config
    name = server.name.replace("/", "-")
    if name in (".", "..") or "\0" in name:
        raise InputError.of(
            f"the server calls its model {name!r}",
            "the results are in a folder of that name",
            "another name where it is served, or tasks.name= of another model of it",
        )
    result = Result(
        name,
        {"server": server.url, "model": server.name, "weights": server.identity},
        asked.settings,
    )
    lm = None
    if asked.tasks is not None:
        from loopcoder.evaluate.lm import ServerLM

        lm = ServerLM(server, config)
    return _put(result, server, lm, asked, output)


def _put(result: Result, model: Any, lm: Any, asked: _Benchmarks, output: Path) -> Result:
    from loopcoder.evaluate import human_eval as programs
    from loopcoder.evaluate.results import add_earlier, write, write_samples

    folder = output / result.name
    make_folder(folder, "output")
    add_earlier(result, folder)
    if asked.tasks is not None:
        found = asked.tasks.put_to(lm)
        result.metrics |= found.metrics
        result.documents |= found.documents
        result.task_versions |= found.versions
        write_samples(found.samples, folder)
    if asked.problems is not None:
        result.documents[programs.TASK] = len(asked.problems)
        of = json.dumps(result.about, sort_keys=True)
        result.metrics[programs.TASK] = programs.evaluate(
            model,
            asked.problems,
            asked.human_eval,
            asked.config.seed,
            folder,
            of,
            is_known=result.about["weights"] is not None,
        )
    write(result, folder)
    return result


def _show(results: Sequence[Result], place: str, *, as_json: bool) -> None:
    from loopcoder.evaluate.results import plot, table

    output = Path(place).expanduser()
    if as_json:
        for result in results:
            print(json.dumps(result.record()))
    else:
        print(table(results))
    say_aside(f"plot       {plot(results, output / 'evaluation.png')}")
