"""`loopcoder export`: write a checkpoint as a folder for transformers, and upload it."""

from __future__ import annotations

from pathlib import Path

from pydantic.dataclasses import dataclass

from loopcoder.checkpoint.copies.places import find_at
from loopcoder.cli.arguments import parse_arguments, say, say_aside
from loopcoder.config.compose import compose
from loopcoder.config.types import STRICT
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.hf.upload import check_name, upload
from loopcoder.storage.files import in_words
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

HELP = """\
Write a checkpoint as a folder that transformers load (tested: 4.57.6, 5.23.0, 5.24.0): weights in
safetensors under the released names, config, tokenizer, modeling code and a model card. One
process, no GPU; it holds 4 GB of weights in memory at once.

usage: loopcoder export checkpoint=DIR|URL output=FOLDER [hub=NAME [dry_run=true]]

  loopcoder export checkpoint=runs/NAME output=exports/NAME        the newest checkpoint of a run
  loopcoder export checkpoint=DIR/checkpoints/step_00001000 output=FOLDER
  loopcoder export checkpoint=DIR output=FOLDER hub=ME/NAME        and upload it to the Hub
  loopcoder export checkpoint=DIR output=FOLDER hub=ME/NAME dry_run=true   say what would be

Any layout and precision; FP8 runs keep their weights in bf16. FOLDER is new: it gets its name when
it is whole. Where it is the same export already, nothing is written.

  hub=NAME        repository on the Hugging Face Hub, made private if it is not there; the token is
                  that of `hf auth login` or $HF_TOKEN
  dry_run=true    list what would be uploaded, and upload nothing

exit codes: 0 done, 3 bad input or a damaged checkpoint, 76 no room on the disk"""


@dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """The settings of an export."""

    checkpoint: str
    """A checkpoint, a folder of them or a run, of which the newest is taken; a path or a URL."""
    output: str
    """Folder to write."""
    hub: str | None = None
    """Repository on the Hugging Face Hub that gets the folder; null: none."""
    dry_run: bool = False
    """Say what would be uploaded, and upload nothing."""


def run(argv: list[str]) -> int:
    """Export, and print where it is."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help or not argv:
        print(HELP)
        return EXIT_DONE
    config = compose(arguments.overrides, arguments.config_dir, schema=ExportConfig, root="export")
    if config.dry_run and config.hub is None:
        raise InputError.of(
            "dry_run=true without hub=",
            "it lists what would be uploaded, and nothing is to be",
            "hub=OWNER/NAME dry_run=true, or leave it out",
        )
    if config.hub is not None:
        check_name(config.hub)
    interrupted_by_signals("before the end of the export; nothing is left, start it again")
    cache = Path(compose([]).data.build.cache_dir).expanduser()
    checkpoint = find_at(config.checkpoint, cache, "checkpoint")
    with ended_at_once():
        from loopcoder.hf.export import export
    output = Path(config.output).expanduser()
    done = export(checkpoint, output, report=lambda text: say_aside(f"writing {text}"))
    said = "is there already, the same" if done.was_there else "is written"
    say(f"{done.folder} {said}: step {checkpoint.step}, {in_words(done.size_bytes)}")
    if config.hub is not None:
        say(upload(done.folder, done.files, config.hub, dry_run=config.dry_run))
    return EXIT_DONE
