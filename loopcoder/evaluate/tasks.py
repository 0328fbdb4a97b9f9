"""Tasks of lm-eval: which there are, without the network, and what models reach in them."""

from __future__ import annotations

import importlib
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loopcoder.backends import require
from loopcoder.config.benchmarks import TasksConfig
from loopcoder.errors import InputError

_UNTOLD = ("alias", "name", "sample_len", "sample_count")
"""What lm-eval has among the metrics of a task."""

Metrics = dict[str, float]
"""By name; NAME_stderr is the standard error of NAME."""


@dataclass(frozen=True)
class Found:
    """What a model reached."""

    metrics: dict[str, Metrics]
    """By task."""
    versions: dict[str, Any]
    """Of tasks."""
    documents: dict[str, int]
    """That were asked."""
    samples: dict[str, list[dict[str, Any]]]
    """By task, if they were asked for."""


class Tasks:
    """Tasks with their data, ready to be put to models."""

    def __init__(self, names: Sequence[str], config: TasksConfig):
        """
        Args:
            names: Of tasks, groups or tags.

        Raises:
            InputError: lm-eval is not installed, there is no such task, or its data are not here.
        """
        self.names, self.config = list(names), config
        self._folder = Path(config.include_path or ".").expanduser().resolve()
        if not self._folder.is_dir():
            raise InputError.of(
                f"tasks.include_path={config.include_path} is no folder",
                "it has the YAML files of tasks",
                "tasks.include_path=DIR",
            )
        require(
            "lm_eval",
            f"tasks={','.join(names)} needs lm-eval, which is not installed",
            "tasks and their metrics are lm-eval's",
            "pip install 'lm-eval==0.4.13' tenacity transformers",
        )
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        manager = self._found()
        for name in self.names:
            self._check(name, self._read(manager, name))
        self._loaded = self._read(manager, *self.names)
        for task in self._loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if own is None:
                task.set_config("num_fewshot", config.num_fewshot or 0)
            elif own != 0 and config.num_fewshot is not None:  # 0 is part of what such a task is
                task.set_config("num_fewshot", config.num_fewshot)

    def _found(self) -> Any:
        """Return lm-eval's index of tasks: of one's own alone if that has all, since its own has
        thousands of files and takes seconds."""
        manager = importlib.import_module("lm_eval.tasks").TaskManager
        own: list[str] = []
        include = None
        if self.config.include_path is not None:
            include = str(self._folder)
            index = manager(include_path=include, include_defaults=False)
            own = index.all_tasks
            if set(self.names) <= set(index.all_subtasks):
                return index
        index = manager(include_path=include)
        unknown = [name for name in self.names if not index.match_tasks([name])]
        if unknown:
            raise InputError.of(
                f"there is no task {', '.join(unknown)}",
                f"lm-eval has {len(index.all_tasks):,} tasks and groups"
                + (f", and {include} has {', '.join(own) or 'none'}" if include else ""),
                "human_eval, one of `lm_eval ls tasks`, or tasks.include_path=DIR for your own",
            )
        return index

    def _read(self, manager: Any, *names: str) -> Any:
        """Return tasks with their data."""
        try:
            with chdir(self._folder):
                return manager.load(list(names))
        except Exception as error:
            # Packages that read data raise whatever they like where there is no network.
            raise InputError.of(
                f"the task {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}"[
                    :600
                ],
                "nothing is downloaded, so its data have to be on this machine",
                "a task with dataset_path: json and data_files:, in tasks.include_path=DIR; or "
                "fill the cache of Hugging Face (HF_HOME) where there is a network",
            ) from error

    @staticmethod
    def _check(name: str, loaded: Any) -> None:
        """Refuse what is not for such models, or not for such a process."""
        for task in loaded["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False):
                raise InputError.of(
                    f"the task {name} runs generated code in this process",
                    "it could do anything that you can",
                    "tasks=human_eval, which runs it in a sandbox",
                )
            if getattr(task, "MULTIMODAL", False):
                why = "the models read text"
                raise InputError.of(f"the task {name} has pictures or sounds", why, "another task")

    def put_to(self, model: Any) -> Found:
        """Ask a model, as `lm_eval run` does with its defaults.

        Args:
            model: An `lm_eval.api.model.LM`.
        """
        evaluator = importlib.import_module("lm_eval.evaluator")
        seed = self.config.seed
        random.seed(0)
        np.random.seed(seed)
        torch.manual_seed(seed)
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed)
        with chdir(self._folder):
            told = evaluator.evaluate(
                model, self._loaded, limit=self.config.limit, log_samples=self.config.samples
            )
        return Found(
            {task: _metrics(values) for task, values in told["results"].items()},
            told.get("versions", {}),
            {task: n["effective"] for task, n in told.get("n-samples", {}).items()},
            told.get("samples", {}),
        )


def _metrics(values: Mapping[str, Any]) -> Metrics:
    """Return the numbers of a task: `acc,none` is acc, `exact_match,strict` keeps its filter."""
    found = {}
    for key, value in values.items():
        name, _, by = key.partition(",")
        if name in _UNTOLD or isinstance(value, str | bool) or not isinstance(value, int | float):
            continue
        found[name if by in ("", "none") else f"{name},{by}"] = float(value)
    return found
