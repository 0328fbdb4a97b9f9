"""A plain PyTorch Llama with AdamW on the batches of `loopcoder train`: what our R = 1 is held to.

    python benchmarks/peer.py --out peer.json model.num_loops=1
    python benchmarks/peer.py --out peer.json --lr 1e-3 --optimizer muon --compile \\
        model=plt_1b model.num_loops=1 data=corpus path=DIR train.max_steps=1000

The overrides are those of `loopcoder train`. With the same ones and the same seed this model has
the shape of ours with R = 1, takes the very same batches in the same order, follows the same rate
over the steps and is evaluated on the same held-out sequences. Model, initial weights, optimizer
and loop share no code with the package: it is written as one would write it without loopcoder.
So it knows neither our initialisation nor rates for parts of the model: one rate (--lr) for all
weights, one --init-std; `model.*init*`, `optim.base_hidden_size` and `optim.*_lr_scale` are ours.

Weights and moments are fp32, and `precision=bf16` computes under autocast. One process, one device.
The file gets the losses (means of ten steps each), the validation loss and the seconds per step.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peer_model import Peer, initialise, rotary_angles, visible_keys
from torch import Tensor, nn
from torch.optim import Optimizer

from loopcoder.backends import detect
from loopcoder.config.check import check
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config, OptimConfig
from loopcoder.data.batch import Batch
from loopcoder.data.corpus import Corpus, load_corpus
from loopcoder.data.loader import Loader, StepData
from loopcoder.data.sampler import Position, enter_stage
from loopcoder.errors import EXIT_DONE, InputError, LoopcoderError, Problem, TrainingDiverged
from loopcoder.model.vocabulary import padded_vocabulary
from loopcoder.optim.schedule import learning_rate
from loopcoder.storage.files import write_json
from loopcoder.train.validation import Evaluator, mixture_mean

MEAN_OVER, PROGRESS = 10, 50
"""Steps per entry of the losses, and between lines of progress."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train the peer, write the file and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the results (JSON)")
    parser.add_argument(
        "--lr", type=float, help="peak rate instead of the config's; min_lr keeps its share of it"
    )
    parser.add_argument("--init-std", type=float, default=0.02, help="of all matrices")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--compile", action="store_true", help="torch.compile the whole model")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.lr is not None and not arguments.lr > 0:
        parser.error(f"--lr {arguments.lr:g}: a rate is above 0")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        run(arguments)
    except LoopcoderError as error:
        print(f"peer: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def run(arguments: argparse.Namespace) -> None:
    config = read_config(arguments.overrides, arguments.lr)
    corpus = load_corpus(corpus_folder(arguments.overrides), "size")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocab_size = padded_vocabulary(config.model, corpus.vocab_size, corpus.tokenizer_path)
    with device:
        peer = Peer(config.model, vocab_size)
    initialise(peer, config.seed, arguments.init_std)
    if arguments.compile:
        peer.compile(dynamic=False)
    optimizers = build_optimizers(peer, config.optim, arguments.optimizer)
    history = train(peer, config, corpus, optimizers, report=lambda x: print(x, flush=True))
    val = evaluate(peer, config, corpus, history.stage)
    print("  ".join(f"{name} {loss:.4f}" for name, loss in val.items()), flush=True)
    means = [statistics.fmean(x) for x in parts_of(history.losses, MEAN_OVER)]
    result = {
        "name": f"peer of {config.model.name}",
        "overrides": arguments.overrides,
        "seed": config.seed,
        "lr": config.optim.lr,
        "init_std": arguments.init_std,
        "optimizer": arguments.optimizer,
        "parameters": sum(p.numel() for p in peer.parameters()),
        "steps": len(history.losses),
        "tokens": history.tokens,
        "loss": means,
        "val": val,
        "seconds_per_step": statistics.median(history.seconds_per_step),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    write_json(arguments.out, result)


def read_config(overrides: list[str], lr: float | None) -> Config:
    """Compose the config as `loopcoder train` does.

    Raises:
        InputError: it is wrong, or asks for what the peer is not.
    """
    backends = detect()
    config = resolve(compose(overrides), backends)
    problems = []
    if config.model.num_loops != 1:
        loops, why = config.model.num_loops, "the peer is a plain transformer without loops"
        problems.append(Problem(f"model.num_loops={loops}", why, "model.num_loops=1"))
    if config.precision.name not in ("fp32", "bf16"):
        why = "the peer computes in fp32, or in bf16 under autocast"
        problems.append(Problem(f"precision={config.precision.name}", why, "precision=bf16"))
    if config.checkpoint.init_from is not None:
        fact = f"checkpoint.init_from={config.checkpoint.init_from}"
        why = "the peer starts from weights of its own"
        problems.append(Problem(fact, why, "checkpoint.init_from=null"))
    if problems:
        raise InputError(problems)
    if lr is not None:
        min_lr = config.optim.min_lr * lr / config.optim.lr
        config = replace(config, optim=replace(config.optim, lr=lr, min_lr=min_lr))
    check(config, 1, backends)
    return config


def corpus_folder(overrides: list[str]) -> Path:
    """Return the folder of the corpus, which another process builds where there is none.

    This one has imported torch, and what is started after that can hang.
    """
    command = [sys.executable, "-m", "loopcoder", "data", *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return Path(done.stdout.splitlines()[-1])


def build_optimizers(peer: Peer, optim: OptimConfig, kind: str) -> list[Optimizer]:
    """Build AdamW for all weights (`adamw`), or for all but the layers' matrices (`muon`).

    Norms are exempt from weight decay. Muon's updates are scaled to the size of AdamW's
    (arXiv 2502.16982, section 2.2), so that rate and decay serve both.
    """
    decayed = {name: p for name, p in peer.named_parameters() if p.dim() > 1}
    norms = [p for p in peer.parameters() if p.dim() == 1]
    optimizers: list[Optimizer] = []
    if kind == "muon":
        matrices = [decayed.pop(name) for name in list(decayed) if name.startswith("layers.")]
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=optim.lr,
                weight_decay=optim.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    groups = [
        dict(params=list(decayed.values()), weight_decay=optim.weight_decay),
        dict(params=norms, weight_decay=0.0),
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    return [*optimizers, adamw]


@dataclass
class History:
    """What training showed."""

    losses: list[float]
    """Loss of each step, in nats per token."""
    seconds_per_step: list[float]
    """Means of MEAN_OVER steps, with the time that data took."""
    tokens: int
    stage: int = 0
    """Index of the data stage of the last step."""


def train(
    peer: Peer,
    config: Config,
    corpus: Corpus,
    optimizers: list[Optimizer],
    report: Callable[[str], None] = lambda _: None,
) -> History:
    """Train all steps of a run; `report` gets the lines of progress.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    device, last = peer.lm_head.weight.device, config.train.max_steps
    begin = enter_stage(config.stages, Position())
    loader = Loader(config, corpus, begin, 0, 1, device.type == "cuda")
    history, recent, began = History([], [], 0), [], time.perf_counter()
    try:
        for data in loader:
            recent.append(train_step(peer, data, config, optimizers))
            step = data.after.step
            if step % MEAN_OVER and step != last:
                continue
            losses = torch.stack(recent).tolist()  # waits for the device
            seconds = (time.perf_counter() - began) / len(recent)
            history.losses += losses
            history.seconds_per_step.append(seconds)
            history.tokens, history.stage = data.after.tokens, data.before.stage
            mean = statistics.fmean(losses)
            if not math.isfinite(mean):
                fact = f"a loss of steps {step - len(losses) + 1} to {step} is not finite"
                why = f"the peak rate of {config.optim.lr:g} is too high"
                raise TrainingDiverged.of(fact, why, f"--lr {config.optim.lr / 2:g}")
            if step in (MEAN_OVER, last) or step % PROGRESS == 0:
                report(f"step {step}/{last}  loss {mean:.4f}  {seconds:.4g} s per step")
            recent, began = [], time.perf_counter()
    finally:
        loader.close()
    return history


def train_step(peer: Peer, data: StepData, config: Config, optimizers: list[Optimizer]) -> Tensor:
    """Return the loss before the update: the sum over valid tokens by their number in the global
    batch. []"""
    tokens = max(1.0, sum(float(batch.loss_mask.sum()) for batch in data.microbatches))
    loss = torch.zeros((), device=peer.lm_head.weight.device)
    theta = config.stages[data.before.stage].rope_theta
    for batch in data.microbatches:
        part = summed_loss(peer, batch, config, theta) / tokens
        part.backward()
        loss += part.detach()
    if config.optim.clip_grad > 0:
        nn.utils.clip_grad_norm_(peer.parameters(), config.optim.clip_grad)
    lr = learning_rate(config.optim, data.after.step, config.train.max_steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    return loss


def summed_loss(peer: Peer, batch: Batch, config: Config, theta: float) -> Tensor:
    """Return the sum of the loss over the valid tokens of a microbatch. []"""
    batch = batch.to(peer.lm_head.weight.device)
    angles = rotary_angles(batch.position_ids, theta, peer.head_dim)
    mask = visible_keys(batch)
    bf16 = config.precision.name == "bf16"
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=bf16):
        losses = peer(batch.tokens, batch.labels, angles, mask)
    return (losses * batch.loss_mask).sum()


@torch.no_grad()
def evaluate(peer: Peer, config: Config, corpus: Corpus, stage: int = -1) -> dict[str, float]:
    """Return the loss on the held-out sequences of `loopcoder train`, weighted by the mixture and
    by domain, under the names of its metrics; `stage` is the index of the data stage."""
    theta, mixture = config.stages[stage].rope_theta, config.stages[stage].mixture
    losses: dict[str, float] = {}
    for held_out in Evaluator(config, corpus).sets(stage):
        loss = tokens = 0.0
        for batch in held_out.batches(0, 1, config.train.micro_batch_size):
            loss += float(summed_loss(peer, batch, config, theta))
            tokens += float(batch.loss_mask.sum())
        if tokens:
            losses[held_out.domain] = loss / tokens
    by_domain = {f"val/loss/{domain}": loss for domain, loss in losses.items()}
    return {"val/loss": mixture_mean(losses, mixture)} | by_domain


def parts_of(values: list[float], length: int) -> list[list[float]]:
    """Cut a list into parts of a length; the last may be shorter."""
    return [values[i : i + length] for i in range(0, len(values), length)]


if __name__ == "__main__":
    sys.exit(main())
