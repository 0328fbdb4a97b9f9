"""`loopcoder import`: weights in the format of transformers become a checkpoint."""

from __future__ import annotations

from pathlib import Path

from loopcoder.cli.arguments import parse_arguments, say_aside
from loopcoder.cli.options import taken
from loopcoder.errors import EXIT_DONE
from loopcoder.storage.signals import interrupted_by_signals

HELP = """\
Make a checkpoint of a folder with config.json and safetensors: of a LoopCoder model that was
released or exported, or of a dense model of the Llama kind, which is R = 1. Training goes on from
it in any layout. No GPU is needed, and little more memory than for the largest tensor.

usage: loopcoder import input=FOLDER output=DIR [tokenizer=PATH|none] [model.KEY=value ...]

  loopcoder import input=~/LoopCoder-V2 output=start             as it was released
  loopcoder import input=~/SmolLM2-135M output=start             a dense model
  loopcoder import input=~/SmolLM2-135M output=start model.num_loops=2
                                                                 with a second loop, to be trained
  loopcoder import input=FOLDER output=start tokenizer=none      weights alone

Then `loopcoder train --config-dir start/conf model=imported checkpoint.init_from=start ...` trains
on it; the whole command is printed. Nothing in the folder is executed: no pickle is opened, and no
Python file. A folder without tokenizer.json needs tokenizer=PATH.
Fields of the model that may be given: num_loops, window, shift, kv_sharing, norm_per_loop, gate,
emb_scale, hidden_scale, gate_bias_init, vocab_size, and name, that of the preset."""


def run(argv: list[str]) -> int:
    """Import, and print what was made and how to train on it."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    interrupted_by_signals("before the end of the import; nothing is left of it, start it again")
    given, overrides = taken(
        "import", arguments.overrides, needed=("input", "output"), others=("tokenizer",)
    )
    from loopcoder.hf.folder import ReleasedFolder
    from loopcoder.hf.importing import import_folder, plan, to_train

    source = ReleasedFolder(Path(given["input"]).expanduser())
    output = Path(given["output"]).expanduser()
    planned = plan(source, overrides, given.get("tokenizer", ""))
    checkpoint = import_folder(planned, output, say_aside)
    model = planned.model
    print(
        f"{checkpoint.path}: {model.num_layers} layers of {model.hidden_size}, "
        f"R = {model.num_loops}, {planned.rows} rows of vocabulary, "
        f"{planned.config.precision.name}\n{to_train(planned, output)}"
    )
    return EXIT_DONE
