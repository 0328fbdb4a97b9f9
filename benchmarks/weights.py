"""What an export and an import cost: seconds, memory and disk, of a model with random weights.

    python benchmarks/weights.py --folder DIR             # the released 7B shape, bf16: 31 GB
    python benchmarks/weights.py --folder DIR --keep      # and everything stays: 46 GB
    python benchmarks/weights.py --folder DIR --model plt_20m --vocabulary 512

A checkpoint is written tensor by tensor, exported by `loopcoder export` and removed, and the export
is imported by `loopcoder import`, each in a process of its own, whose memory is looked at every
10 ms. The imported checkpoint has to have the digest of every tensor that was written, and a few
tensors of the export are drawn once more and compared bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARED = 6
TEXTS = ["def add(a, b):\n    return a + b\n"] * 20


@dataclass(frozen=True)
class Cost:
    """Of one command."""

    seconds: float
    cpu_seconds: float
    """Which it would take about where nothing else computes."""
    anonymous_bytes: int
    """Largest memory that is no file's."""
    resident_bytes: int
    """Largest memory, pages of mapped files included."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="gets a folder of its own")
    parser.add_argument("--model", default="plt_7b")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--vocabulary", type=int, default=76800, help="rows of embedding and head")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--keep", action="store_true", help="remove nothing")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="weights_", dir=arguments.folder))
    try:
        print(f"seed {arguments.seed}\n\n| what | figure |\n| --- | --- |")
        for what, figure in measured(arguments, place):
            print(f"| {what} | {figure} |", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(place)


def measured(arguments: argparse.Namespace, place: Path) -> Iterator[tuple[str, str]]:
    """Yield what was measured, with its figure.

    Raises AssertionError where a bit did not arrive.
    """
    from loopcoder.checkpoint import format as layout
    from loopcoder.checkpoint.digest import read_digest

    source, folder, output = (place / name for name in ("run", "export", "import"))
    began = time.perf_counter()
    config = write_checkpoint(arguments, source)
    seconds, size = time.perf_counter() - began, bytes_of(source)
    written = read_digest(layout.find(source))
    yield "checkpoint of random weights", f"{size / 1e9:.2f} GB in {seconds:.0f} s"

    cost = run("export", f"checkpoint={source}", f"output={folder}")
    yield "loopcoder export", in_words(cost, bytes_of(folder))
    used = bytes_of(place)
    compared = compare_some(config, arguments, folder)
    if not arguments.keep:
        shutil.rmtree(source)

    cost = run("import", f"input={folder}", f"output={output}")
    yield "loopcoder import", in_words(cost, bytes_of(output))
    used = max(used, bytes_of(place))
    found = read_digest(layout.find(output))
    assert written is not None and found is not None
    tensors = [name for name in written if name.startswith("model.")]
    assert {n: written[n] for n in tensors} == {n: found.get(n) for n in tensors}
    yield "disk at most", f"{used / 1e9:.2f} GB"
    yield "tensors whose digest is that of the checkpoint", f"all {len(tensors)} of the import"
    yield "tensors drawn again", f"all {compared} of the export equal bit for bit"


def in_words(cost: Cost, size: int) -> str:
    rate = size / cost.seconds / 1e9
    return (
        f"{size / 1e9:.2f} GB in {cost.seconds:.0f} s ({rate:.3f} GB/s), of which "
        f"{cost.cpu_seconds:.0f} s on a CPU; "
        f"anonymous memory {cost.anonymous_bytes / 1e9:.2f} GB, "
        f"with mapped files {cost.resident_bytes / 1e9:.2f} GB"
    )


def run(*arguments: str) -> Cost:
    """Run a verb of loopcoder, and watch its memory until it ends."""
    began, cpu_before = time.perf_counter(), cpu_seconds()
    anonymous = resident = 0
    process = subprocess.Popen([sys.executable, "-m", "loopcoder", *arguments], stdout=sys.stderr)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "RssAnon" in fields:  # not of a process that has ended
            anonymous = max(anonymous, int(fields["RssAnon"].split()[0]) * 1024)
            resident = max(resident, int(fields["VmHWM"].split()[0]) * 1024)
        time.sleep(0.01)
    if process.returncode:
        sys.exit(process.returncode)
    seconds = time.perf_counter() - began
    return Cost(seconds, cpu_seconds() - cpu_before, anonymous, resident)


def cpu_seconds() -> float:
    """Return what all processes have used that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_checkpoint(arguments: argparse.Namespace, folder: Path) -> Any:
    """Write a checkpoint of weights alone; return its config."""
    from dataclasses import replace

    from data_pipeline.tokenizer.encoder import train_tokenizer
    from loopcoder.checkpoint import format as layout
    from loopcoder.checkpoint.state import CheckpointState
    from loopcoder.checkpoint.written import WeightsWriter
    from loopcoder.config.compose import compose
    from loopcoder.config.identity import config_hash
    from loopcoder.data.places import TOKENIZER
    from loopcoder.data.sampler import Position
    from loopcoder.hf.mapping import released_names, shard_name
    from loopcoder.storage.digest import file_digest

    config = compose([f"model={arguments.model}", f"precision={arguments.precision}"])
    model = replace(config.model, vocab_size=arguments.vocabulary)
    config = replace(config, model=model)
    folder.mkdir()
    tokenizer = folder / TOKENIZER
    train_tokenizer(TEXTS, 330, tokenizer)
    state = CheckpointState(
        position=Position(),
        num_loops=model.num_loops,
        vocab_size=arguments.vocabulary,
        tokens=arguments.vocabulary,
        tokenizer_hash=file_digest(tokenizer),
        tokenizer_path=str(tokenizer),
        corpus="",
        corpus_dir="",
        config_hash=config_hash(config),
        world_size=1,
        warmup_steps=None,
    )
    with WeightsWriter(layout.step_folder(folder, 0)) as writer:
        for ours in released_names(model):
            name, layer = shard_name(ours)
            x = drawn(ours, config, arguments)
            offset = [0] * x.ndim
            if layer is None:
                writer.write(name, x, offset, x.shape)
            else:
                writer.write(name, x[None], [layer, *offset], [model.num_layers, *x.shape])
        writer.complete(config, state, [tokenizer])
    return config


def drawn(ours: str, config: Any, arguments: argparse.Namespace) -> Any:
    """Return a weight by our name, the same in every call."""
    import torch

    from loopcoder.hf.mapping import released_names, released_shapes
    from loopcoder.storage.digest import fingerprint

    parts = released_names(config.model)[ours]
    shapes = released_shapes(config.model, arguments.vocabulary)
    rows = sum(shapes[part][0] for part in parts)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    seed = int(fingerprint(arguments.seed, ours)[:12], 16)
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty((rows, *shapes[parts[0]][1:]), dtype=dtype)
    return x.uniform_(-1, 1, generator=generator)  # a sixth of what normal numbers take


def compare_some(config: Any, arguments: argparse.Namespace, folder: Path) -> int:
    """Compare tensors of an export with what is drawn for their names; return how many."""
    import torch

    from loopcoder.hf.folder import ReleasedFolder
    from loopcoder.hf.mapping import released_names

    released = ReleasedFolder(folder)
    whole = {
        ours: parts[0] for ours, parts in released_names(config.model).items() if not parts[1:]
    }
    some = random.Random(arguments.seed).sample(sorted(whole), COMPARED)
    for ours in some:
        found, wanted = released.read(whole[ours]), drawn(ours, config, arguments)
        assert torch.equal(found, wanted), ours
    return len(some)


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if not file.is_symlink())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    main()
