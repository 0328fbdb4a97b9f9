from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.conftest import fresh_seed

WORDS = ["loop", "gate", "window", "key", "value", "reads", "writes", "of", "the", "é"]
TASK = """\
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
{rest}
"""
CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATE = """\
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture(scope="session")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks of drawn questions: local_choice, local_generate, local_rolling."""
    rng = random.Random(fresh_seed())
    folder = tmp_path_factory.mktemp("tasks")

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    choices = [
        {
            "q": text(rng.randint(1, 12)),
            "choices": [" " + text(rng.randint(1, 4)) for _ in range(4)],
            "label": rng.randrange(4),
        }
        for _ in range(12)
    ]
    asked = [{"q": text(rng.randint(1, 60)), "a": text(1)} for _ in range(8)]
    texts = [{"text": text(rng.randint(10, 200))} for _ in range(4)]
    for name, rest, lines in (
        ("choice", CHOICE, choices),
        ("generate", GENERATE, asked),
        ("rolling", ROLLING, texts),
    ):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, rest=rest))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
