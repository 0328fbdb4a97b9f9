"""What tuning on conversations gives, and what it costs.

    python benchmarks/tuning.py answers --base DIR --chats DIR [--thinking DIR]    (docs/tuning.md)
    python benchmarks/tuning.py answers --corpus DIR --chats DIR [--thinking DIR]
    python benchmarks/tuning.py speed --chats DIR [--rounds 3]                (docs/performance.md)

`answers` takes a model of one loop, BASE or one that it trains on CORPUS, tunes it as it is and as
one of two loops, on conversations and on the same with reasoning, with one seed, and shows how all
of them answer held-out conversations (loopcoder evaluate tasks=chat), the model before tuning too.
BASE is what `loopcoder import` made, or a run or checkpoint of the preset --model. `speed` trains
on packed conversations and, in turn, on the same documents without their mask: pretraining.
CHATS and THINKING are corpora that `loopcoder data data=chat` built in the model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import QUIET

BEFORE = "before"
COLUMNS = (
    *("model", "first_loss", "val_loss", "well_formed", "calls_well_formed"),
    *("calls", "calls_alike", "no_calls"),
)
ILL_FORMED = 8
"""Answers kept of each model, and as many with calls that their tools do not take."""


@dataclass(frozen=True)
class Tuned:
    """A model that is tuned."""

    name: str
    loops: int
    chats: Path

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "_").replace(",", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    shows = argparse.ArgumentDefaultsHelpFormatter
    answers = verbs.add_parser("answers", formatter_class=shows)
    speed = verbs.add_parser("speed", formatter_class=shows)
    for verb in (answers, speed):
        verb.add_argument("--chats", type=Path, required=True, help="corpus of conversations")
        verb.add_argument("--model", default="plt_100m", help="a preset, unless BASE has its own")
        verb.add_argument("--folder", type=Path, help="folder for the runs, which are removed")
        verb.add_argument("--json", type=Path, help="file for the figures")
        verb.add_argument("--overrides", nargs="*", default=[], help="of every run")
    start = answers.add_mutually_exclusive_group(required=True)
    start.add_argument("--base", type=Path, help="a model that was imported, a run or a checkpoint")
    start.add_argument("--corpus", type=Path, help="of documents, to train a base on")
    answers.add_argument("--thinking", type=Path, help="the conversations with reasoning")
    answers.add_argument("--base-steps", type=int, default=400, help="on CORPUS")
    answers.add_argument("--looped", nargs="*", default=[], help="overrides of two loops alone")
    answers.add_argument("--steps", type=int, default=400, help="of tuning")
    answers.add_argument("--batch", type=int, default=16, help="sequences a step")
    answers.add_argument("--lr", type=float, default=3e-4, help="peak, of tuning")
    answers.add_argument("--limit", type=int, default=100, help="held-out conversations")
    answers.add_argument("--at-once", type=int, default=5, help="models, all that there are")
    answers.add_argument("--max-tokens", type=int, default=512, help="of an answer")
    speed.add_argument("--rounds", type=int, default=3, help="of both, in turn")
    speed.add_argument("--steps", type=int, default=60, help="of each run")
    speed.add_argument("--batch", type=int, default=16, help="sequences a step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure = measure_answers if arguments.verb == "answers" else measure_speed
        found = measure(arguments, Path(folder))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure_answers(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, tune and ask; print the table."""
    began = time.monotonic()
    length = seq_length(arguments.chats)
    shared = [*preset(arguments), f"data.seq_length={length}", *arguments.overrides]
    base: Path = arguments.base or folder / "base"
    if arguments.base is None:
        wait([start_training(base, *shared, "model.num_loops=1", *corpus(arguments.corpus),
                             f"train.max_steps={arguments.base_steps}")])  # fmt: skip
    trained_s = time.monotonic() - began
    print(f"pretrained in {trained_s:.0f} s", flush=True)
    tuned = [Tuned("R = 1", 1, arguments.chats), Tuned("R = 2", 2, arguments.chats)]
    if arguments.thinking is not None:
        tuned += [
            Tuned("R = 1, thinking", 1, arguments.thinking),
            Tuned("R = 2, thinking", 2, arguments.thinking),
        ]
    settings = [f"train.max_steps={arguments.steps}", f"train.global_batch_size={arguments.batch}"]
    settings += [f"optim.lr={arguments.lr}", f"optim.min_lr={arguments.lr / 10}"]

    def measured(one: Tuned) -> dict[str, Any]:
        """Tune a model and put it to what is held out; the others are under way meanwhile."""
        run_dir = base if one.name == BEFORE else folder / one.folder
        row: dict[str, Any] = {"model": one.name}
        if one.name != BEFORE:
            looped = arguments.looped if one.loops > 1 else []
            wait([start_training(run_dir, "experiment=sft", *shared, *corpus(one.chats, "chat"),
                                 *settings, *looped, "eval.at_end=true",
                                 f"model.num_loops={one.loops}",
                                 f"checkpoint.init_from={base}")])  # fmt: skip
            row |= {"first_loss": first_loss(run_dir), "tuned_s": time.monotonic() - began}
        output = folder / "evaluation" / one.folder
        (answers,) = answers_of(ask(output, one, run_dir, arguments))
        row |= {"val_loss": val_loss(run_dir), **answers["metrics"]["chat"], **kept(output)}
        took = time.monotonic() - began
        print(f"{took:.0f} s: {json.dumps({name: row.get(name) for name in COLUMNS})}", flush=True)
        return row

    with ThreadPoolExecutor(arguments.at_once) as at_once:
        table = list(at_once.map(measured, [Tuned(BEFORE, 1, arguments.chats), *tuned]))
    whole_s = time.monotonic() - began
    print(f"all in {whole_s:.0f} s\n\n{markdown(table)}")
    return {"pretrained_s": trained_s, "all_s": whole_s, "models": table}


def measure_speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train on conversations and on the same documents, in turn; print the ratio."""
    documents = without_mask(arguments.chats, folder / "documents")
    length = seq_length(arguments.chats)
    shared = [f"model={arguments.model}", f"data.seq_length={length}", *arguments.overrides]
    shared += [f"train.global_batch_size={arguments.batch}", f"train.max_steps={arguments.steps}"]
    rates: dict[str, list[float]] = {"chats": [], "documents": []}
    for number in range(arguments.rounds):
        for name, place in (("chats", arguments.chats), ("documents", documents)):
            run_dir = folder / f"{name}{number}"
            wait([start_training(run_dir, *shared, *corpus(place, "chat"))])
            rates[name].append(rate(run_dir))
            print(f"{name}: {rates[name][-1]:,.0f} tokens/s", flush=True)
    ratios = [a / b for a, b in zip(rates["chats"], rates["documents"], strict=True)]
    print(f"\nchats / documents: {statistics.median(ratios):.4f} ({min(ratios):.4f} to "
          f"{max(ratios):.4f} in {len(ratios)} rounds)")  # fmt: skip
    return {"tokens_per_s": rates, "ratios": ratios}


def preset(arguments: argparse.Namespace) -> list[str]:
    """Return what names the model: a preset, or that of a base which was imported."""
    if arguments.base is not None and (arguments.base / "conf").is_dir():
        return ["--config-dir", str(arguments.base / "conf"), "model=imported"]
    return [f"model={arguments.model}"]


def corpus(folder: Path, *domains: str) -> list[str]:
    mixture = ",".join(f"{domain}:1" for domain in domains or ("text", "code"))
    return ["data=corpus", f"path={folder}", f"data.mixture={{{mixture}}}"]


def start_training(run_dir: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "loopcoder", "train", *QUIET, *overrides]
    command += [f"run_dir={run_dir}", "checkpoint.interval=null", "checkpoint.save_at_end=true"]
    return subprocess.Popen([*command, "parallel.nproc_per_node=1"], stdout=subprocess.DEVNULL)


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"training ended with {codes}")


def ask(
    output: Path, one: Tuned, run: Path, arguments: argparse.Namespace
) -> subprocess.Popen[str]:
    """Begin to put a model to the held-out conversations of what it was tuned on."""
    command = [sys.executable, "-m", "loopcoder", "evaluate", f"checkpoint={run}", "tasks=chat"]
    command += [f"chat.corpus={one.chats}", f"output={output}", "tasks.samples=true", "--json"]
    command += [f"chat.max_tokens={arguments.max_tokens}", f"tasks.limit={arguments.limit}"]
    command += ["tasks.places=32"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def kept(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return some of the answers that are not well-formed, and some with wrong calls."""
    (file,) = output.glob("*/samples_chat.jsonl")  # in a folder with the name of the model
    said = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = ("conversation", "reference", "answer", "problems", "wrong_calls", "ended")
    groups = {
        "ill_formed": [one for one in said if not one["well_formed"]],
        "wrongly_called": [one for one in said if one["well_formed"] and one["wrong_calls"]],
    }
    return {
        group: [
            {"asked": one["before"][-1]["content"], **{name: one[name] for name in names}}
            for one in found[:ILL_FORMED]
        ]
        for group, found in groups.items()
    }


def answers_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the evaluation ended with {process.returncode}")
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return what a run has logged; what was imported has logged nothing."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def first_loss(run_dir: Path) -> float:
    """Return the loss of the first step, before anything was learned."""
    return next(record["loss"] for record in metrics(run_dir) if "loss" in record)


def val_loss(run_dir: Path) -> float | None:
    found = [record["val/loss"] for record in metrics(run_dir) if "val/loss" in record]
    return found[-1] if found else None


def rate(run_dir: Path) -> float:
    """Return the median tokens per second of the second half of a run."""
    found = [record["tokens_per_s"] for record in metrics(run_dir) if "tokens_per_s" in record]
    return statistics.median(found[len(found) // 2 :])


def seq_length(chats: Path) -> int:
    length: int = json.loads((chats / "manifest.json").read_text())["packed"]["seq_length"]
    return length


def without_mask(chats: Path, folder: Path) -> Path:
    """Copy a corpus of conversations as one of documents: with nothing that is of chats alone."""
    shutil.copytree(chats, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["packed"]
    manifest["fingerprint"] = "0" * len(manifest["fingerprint"])
    of_chats = ("chat_template.jinja", "held_out.jsonl")
    named = [name for name in manifest["files"] if ".mask" in name or name in of_chats]
    for name in named:
        del manifest["files"][name]
        (folder / name).unlink()
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row in rows:
        cells = [row.get(name) for name in COLUMNS]
        text = ["-" if c is None else c if isinstance(c, str) else f"{c:.3f}" for c in cells]
        lines.append(f"| {' | '.join(text)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
