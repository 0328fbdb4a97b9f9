"""Every cross-check: what it refuses, and the override that mends it."""

import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from loopcoder.backends import Backends
from loopcoder.config.check import batch_sizes, batch_unit, check
from loopcoder.config.compose import compose
from loopcoder.config.identity import config_hash
from loopcoder.config.resolve import processes_to_start, resolve
from loopcoder.errors import InputError, Problem

CPU = Backends(versions={"torch": "2.11.0", "wandb": "0", "tensorboard": "0"})
H100 = Backends(
    8, "NVIDIA H100 80GB HBM3", (9, 0), {"torch": "2.11.0", "transformer_engine": "2.8.0"}
)
A100 = Backends(8, "NVIDIA A100-SXM4-80GB", (8, 0), {"transformer_engine": "2.8.0"})
BUILT = replace(H100, kernels_fault=None)
STALE = replace(H100, kernels_fault="built for torch 2.10.0, this is torch 2.11.0")
BARE_GPU = Backends(1, "NVIDIA H100 80GB HBM3", (9, 0), {"torch": "2.11.0"})
ONE_GPU = replace(H100, gpu_count=1)


# The numbers that the cases below reckon with, whatever the recipe of the default model.
STEADY = [
    "train.max_steps=400",
    "train.global_batch_size=16",
    "train.micro_batch_size=8",
    "data.seq_length=256",
    "data.build.tokenizer_vocab_size=4096",
]


def problems(*overrides: str, on: Backends = CPU, world_size: int | None = None) -> list[Problem]:
    config = resolve(compose([*STEADY, *overrides]), on)
    size = processes_to_start(config, on) if world_size is None else world_size
    try:
        check(config, size, on)
    except InputError as error:
        return error.problems
    return []


GOOD: list[tuple[list[str], Backends, int | None]] = [
    ([], CPU, None),
    (["precision=bf16"], CPU, None),
    (["objective.loop_weights=[0.5,1]", "objective.loop_count=uniform"], CPU, None),
    (["objective.exit=true", "objective.loop_count=poisson", "model.num_loops=3"], CPU, None),
    (["parallel=tp2_sp"], CPU, None),
    (["parallel.pp=2"], CPU, None),
    (["parallel=tp2", "train.micro_batch_size=4"], CPU, 4),
    (["data.mixture={text:1,code:3}"], CPU, None),
    (["train.batch_ramp={start:8,increment:8,samples:64}"], CPU, None),
    (["model=plt_7b", "precision=fp8_blockwise", "parallel=tp2", "train.micro_batch_size=4"],
     H100, 8),
    (["parallel=dp_overlap", "train.micro_batch_size=2"], H100, None),
    (["data.stages=[{until:1000,seq_length:128},{until:5000},{}]"], CPU, None),
    (["data.stages=[{until:1000,seq_length:128},{}]", "eval.lengths=[64,4096]"], CPU, None),
    (["experiment=sample_1b_100steps", "train.micro_batch_size=1"], A100, 8),
    (["model=plt_1b", "model.kernels=cuda", "train.micro_batch_size=1"], BUILT, 8),
    (["model=plt_1b", "model.kernels=stock", "train.micro_batch_size=1"], STALE, 8),
    (["train.cuda_graphs=auto"], CPU, None),
    (["train.cuda_graphs=on"], ONE_GPU, None),
    (["train.cuda_graphs=auto", "parallel.recompute=full", "train.micro_batch_size=4"], H100, 4),
    (["train.cuda_graphs=on", "logging.loop_losses=true", "logging.interval=10"], ONE_GPU, None),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "machine", "world_size"), GOOD)
def test_what_fits_passes(overrides: list[str], machine: Backends, world_size: int | None) -> None:
    assert problems(*overrides, on=machine, world_size=world_size) == []


BAD: list[tuple[str, Backends, str, str]] = [
    ("model.num_kv_heads=3", CPU, "model.num_kv_heads=3", "model.num_kv_heads=1"),
    ("model.head_dim=31", CPU, "pairs", "model.head_dim=32"),
    ("model.vocab_size=5000", CPU, "multiple of 128", "model.vocab_size=5120"),
    ("parallel.tp=4 parallel.nproc_per_node=4", CPU, "model.num_kv_heads=2", "parallel.tp=2"),
    ("parallel.tp=2 model.ffn_hidden_size=513", CPU, "ffn_hidden_size=513", "parallel.tp=1"),
    ("parallel.tp=2 parallel.nproc_per_node=3", CPU, "3 processes", "parallel.nproc_per_node=4"),
    ("parallel.nproc_per_node=2", BARE_GPU, "GPU of its own", "parallel.nproc_per_node=1"),
    ("parallel.rendezvous=gpu1:29500", CPU, "a run of its own", "parallel.nodes=N"),
    ("parallel.sp=true", CPU, "parallel.sp=true parallel.tp=1", "parallel.sp=false"),
    ("parallel=tp2_sp data.seq_length=255", CPU, "seq_length=255", "data.seq_length=256"),
    ("parallel=tp2_sp eval.lengths=[256,255]", CPU, "eval.lengths.1=255", "eval.lengths.1=256"),
    ("eval.lengths=[64,64,1]", CPU, "eval.lengths=[64,64,1]", "eval.lengths=[64]"),
    ("eval.lengths=[96,32,96]", CPU, "evaluated once", "eval.lengths=[96,32]"),
    ("eval.lengths=[1]", CPU, "nothing is predicted", "eval.lengths=null"),
    ("eval.lengths=[999999]", CPU, "eval.lengths.0=999999", "eval.lengths.0=131072"),
    ("precision=fp8_blockwise eval.lengths=[8] parallel.nproc_per_node=1", H100,
     "train.micro_batch_size*eval.lengths (8*8)", "make it 128"),
    ("parallel.overlap_param_gather=true", CPU, "overlap", "parallel.overlap_grad_reduce=true"),
    ("parallel.chunks_per_loop=2", CPU, "chunks_per_loop=2", "parallel.chunks_per_loop=1"),
    ("parallel.pp=4 train.micro_batch_size=1", CPU, "stages holds a layer", "parallel.pp=2"),
    ("parallel.pp=2 parallel.chunks_per_loop=2 train.micro_batch_size=1", CPU, "holds a layer",
     "parallel.chunks_per_loop=1"),
    ("parallel.pp=2 train.micro_batch_size=16", CPU, "1 microbatch", "global_batch_size=32"),
    ("parallel.cp=2", CPU, "not built yet", "parallel.cp=1"),
    ("train.global_batch_size=20", CPU, "8 at a time", "train.global_batch_size=24"),
    ("train.global_batch_size=15 train.micro_batch_size=1", CPU, "multiples of 2",
     "train.global_batch_size=16"),
    ("data.mixture={text:2,code:3}", CPU, "multiples of 5", "train.global_batch_size=40"),
    ("train.batch_ramp={start:8,increment:3,samples:9}", CPU, "whole number of increments",
     "train.batch_ramp.increment=8"),
    ("train.batch_ramp={start:4,increment:4,samples:9}", CPU, "a global batch of 4",
     "train.batch_ramp.start=8"),
    ("train.cuda_graphs=on", CPU, "train.cuda_graphs=on, no GPU", "train.cuda_graphs=off"),
    ("train.cuda_graphs=on parallel.nproc_per_node=2", H100, "2 processes",
     "parallel.nproc_per_node=1"),
    ("train.cuda_graphs=on precision=fp8_tensorwise parallel.nproc_per_node=1", H100,
     "precision=fp8_tensorwise", "precision=bf16"),
    ("train.cuda_graphs=on precision=fp32 parallel.nproc_per_node=1", H100,
     "precision=fp32 model.layer_spec=te", "model.layer_spec=torch"),
    ("train.cuda_graphs=on parallel.recompute=selective", ONE_GPU, "random numbers",
     "parallel.recompute=none"),
    ("train.cuda_graphs=on parallel.overlap_grad_reduce=true", ONE_GPU, "streams of their own",
     "parallel.overlap_grad_reduce=false"),
    ("train.cuda_graphs=on objective.loop_count=uniform", ONE_GPU, "loops that it was made of",
     "objective.loop_count=fixed"),
    ("train.cuda_graphs=on logging.loop_gradients=true logging.interval=1", ONE_GPU,
     "every step is one", "logging.interval=10"),
    ("train.cuda_graphs=on logging.diagnostics_interval=1 logging.interval=1", ONE_GPU,
     "logging.diagnostics_interval=1 logging.interval=1", "logging.interval=10"),
    ("train.cuda_graphs=on", BARE_GPU, "no Transformer Engine", "[te]"),
    ("data.mixture={}", CPU, "nothing to train on", "data.mixture={text:1,code:1}"),
    ("data=corpus", CPU, "finished corpus", "path=DIR"),
    ("data=files", CPU, "nothing to read", "path=DIR"),
    ("data=hf", CPU, "dataset's name", "path=NAME"),
    ("data=hf path=x data.build.sources.0.streaming=true", CPU, "no end", "max_documents=100000"),
    ("data=hf path=x data.build.sources.0.repository_field=repo", CPU, "order of their paths",
     "data.build.sources.0.path_field=COLUMN"),
    ("data.build.tokenizer_vocab_size=100", CPU, "special tokens",
     "data.build.tokenizer_vocab_size=320"),
    ("model.vocab_size=1024", CPU, "every token", "data.build.tokenizer_vocab_size=1024"),
    ("model.max_position_embeddings=128", CPU, "positions", "data.seq_length=128"),
    ("data.stages=[{until:10},{until:5},{}]", CPU, "until=5 after 10", "until=15"),
    ("data.stages=[{until:10},{until:20}]", CPU, "last stage", "data.stages.1.until=null"),
    ("data.stages=[{},{}]", CPU, "never start", "data.stages.0.until=TOKENS"),
    ("optim.schedule.warmup_steps=500", CPU, "never reach", "optim.schedule.warmup_steps=20"),
    ("optim=adam_wsd optim.schedule.decay_fraction=0.99", CPU, "overlap", "decay_fraction=0.95"),
    ("objective.loop_weights=[1,1,1]", CPU, "each loop has one", "objective.loop_weights=[1,1]"),
    ("objective.loop_weights=[0,0]", CPU, "weight that is not 0", "objective.loop_weights=[1,1]"),
    ("objective.loop_weights=[0,1] objective.loop_count=uniform", CPU, "first loop with a weight",
     "objective.min_loops=2"),
    ("objective.loop_weights=[1,1] objective.exit=true", CPU, "exclude each other",
     "objective.loop_weights=null"),
    ("objective.exit=true model.num_loops=1", CPU, "nothing to choose", "model.num_loops=2"),
    ("objective.exit_entropy=0.5", CPU, "without objective.exit=true", "exit_entropy=0.1"),
    ("objective.loop_count=uniform model.num_loops=1", CPU, "nothing to draw",
     "model.num_loops=2"),
    ("objective.loop_count=uniform objective.min_loops=3", CPU, "the most that is drawn",
     "objective.min_loops=1"),
    ("objective.loop_count=poisson objective.min_loops=2", CPU, "range of one number",
     "objective.min_loops=1"),
    ("objective.min_loops=2", CPU, "without objective.loop_count", "objective.min_loops=1"),
    ("objective.loop_count=poisson objective.mean_loops=0.5", CPU, "is 1 above it",
     "objective.mean_loops=1"),
    ("objective.loop_count=uniform objective.mean_loops=2", CPU, "objective.loop_count=poisson",
     "objective.mean_loops=null"),
    ("objective.loop_sigma=1", CPU, "objective.loop_count=poisson", "objective.loop_sigma=0.5"),
    ("optim.min_lr=1", CPU, "below its peak", "optim.min_lr="),
    ("model.layer_spec=te", CPU, "no GPU", "model.layer_spec=torch"),
    ("model.layer_spec=te", BARE_GPU, "no Transformer Engine", "model.layer_spec=torch"),
    ("precision=fp8_tensorwise model=plt_7b parallel.nproc_per_node=1", BARE_GPU, "no Transformer",
     "precision=bf16"),
    ("precision=fp8_delayed parallel.nproc_per_node=1", A100, "8.0", "precision=bf16"),
    ("precision=fp8_delayed model.layer_spec=torch parallel.nproc_per_node=1", H100, "torch",
     "model.layer_spec=te"),
    ("precision=fp8_tensorwise model.ffn_hidden_size=520 parallel.nproc_per_node=1", H100,
     "multiples of 16", "make it 528"),
    ("precision=fp8_blockwise model.hidden_size=208 parallel.nproc_per_node=1", H100,
     "multiples of 128", "make it 256"),
    ("faults.replay_interval=9 parallel.nproc_per_node=1", H100, "in another order",
     "train.deterministic=true"),
    ("precision=fp8_delayed parallel.nproc_per_node=1", H100, "loops whose activations differ",
     "precision=fp8_tensorwise"),
    ("precision=bf16 precision.bf16_layers_at_end=1 parallel.nproc_per_node=1", H100,
     "without FP8", "precision.bf16_layers_at_end=0"),
    ("precision=fp8_delayed precision.bf16_layers_at_start=1 parallel.nproc_per_node=1", H100,
     "maxima of all layers", "precision=fp8_tensorwise"),
    ("precision=fp8_tensorwise precision.bf16_layers_at_start=3 parallel.nproc_per_node=1", H100,
     "within one stage", "precision.bf16_layers_at_start=2"),
    ("model.kernels=cuda", CPU, "no GPU", "model.kernels=stock"),
    ("model=plt_1b model.kernels=cuda", H100, "not built", "pip install --no-build-isolation"),
    ("model=plt_1b", STALE, "built for torch 2.10.0", "model.kernels=stock"),
    ("model=plt_1b model.kernels=cuda model.hidden_size=2056", BUILT,
     "gate's kernel needs a multiple", "kernels=stock"),
    ("model=plt_1b model.kernels=cuda model.window=300", BUILT, "at most 256", "kernels=stock"),
    ("model=plt_1b model.kernels=cuda model.window=200", replace(BUILT, compute_capability=(8, 0)),
     "at most 128", "kernels=stock"),
    ("model=plt_1b model.kernels=cuda precision=fp32", BUILT, "16-bit", "kernels=stock"),
    ("model=plt_1b model.kernels=cuda", replace(BUILT, compute_capability=(8, 9)), "8.0 and for",
     "kernels=stock"),
    ("model=plt_1b model.kernels=cuda", replace(BUILT, compute_capability=(12, 0)), "9.0 to 11.x",
     "kernels=stock"),
    ("logging.wandb=online parallel.nproc_per_node=1", BARE_GPU, "not installed", "wandb=auto"),
    ("logging.tensorboard=on", BARE_GPU, "not installed", "logging.tensorboard=auto"),
    ("checkpoint.init_optimizer=true", CPU, "no checkpoint", "checkpoint.init_optimizer=false"),
    ("checkpoint.init_position=true", CPU, "no checkpoint", "checkpoint.init_position=false"),
    ("optim.schedule.decay_steps=10", CPU, "only wsd", "optim=adam_wsd"),
    ("optim=adam_wsd optim.schedule.decay_steps=2000", CPU, "overlap", "decay_steps=380"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "machine", "says", "fix"), BAD)
def test_what_does_not_fit_is_refused_with_its_mending(
    overrides: str, machine: Backends, says: str, fix: str
) -> None:
    found = problems(*overrides.split(), on=machine)
    assert any(says in f"{p.fact} {p.why}" and fix in p.fix for p in found), found


def test_everything_is_reported_together() -> None:
    found = problems("parallel.cp=2", "optim.min_lr=1", "train.global_batch_size=15", "data=files")
    assert len(found) >= 4


def test_fp8_is_never_ignored_on_a_cpu() -> None:
    for name in ("fp8_tensorwise", "fp8_delayed", "fp8_blockwise"):
        assert any("compute capability" in p.why for p in problems(f"precision={name}"))


def test_the_suggested_batch_passes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(6):
        overrides = [
            f"train.micro_batch_size={rng.randint(1, 6)}",
            f"parallel.nproc_per_node={rng.randint(1, 4)}",
            f"data.mixture={{text:{rng.randint(1, 5)},code:{rng.randint(1, 5)}}}",
        ]
        found_batch = f"train.global_batch_size={rng.randint(1, 200)}"
        for problem in problems(*overrides, found_batch):
            for fix in re.findall(r"train\.\S+=\d+", problem.fix):
                batch = found_batch if "micro" in fix else ""
                assert problems(*overrides, *filter(None, [batch, fix])) == []


def test_batch_unit_is_the_smallest_exact_composition(seed: int) -> None:
    rng = random.Random(seed)
    assert batch_unit({"text": 1.0, "code": 1.0}) == 2
    assert batch_unit({"code": 0.3}) == 1
    assert batch_unit({"a": 0.1, "b": 0.2, "c": 0.7}) == 10
    for _ in range(50):
        weights = [rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
        unit = batch_unit({str(i): float(w) for i, w in enumerate(weights)})
        fits = [
            n
            for n in range(1, unit + 1)
            if all(n * Fraction(w, sum(weights)) % 1 == 0 for w in weights)
        ]
        assert fits == [unit]


def test_batch_sizes_of_a_ramp() -> None:
    config = compose([*STEADY, "train.batch_ramp={start:4,increment:4,samples:64}"])
    assert batch_sizes(config) == [4, 8, 12, 16]
    assert batch_sizes(compose(STEADY)) == [16]


def test_auto_is_resolved_by_the_machine() -> None:
    for machine, precision, spec in (
        (CPU, "fp32", "torch"),
        (BARE_GPU, "bf16", "torch"),
        (H100, "bf16", "te"),
    ):
        config = resolve(compose([]), machine)
        assert (config.precision.name, config.model.layer_spec) == (precision, spec)
        assert resolve(config, CPU) == config
    assert (
        resolve(compose(["precision=fp32", "model.layer_spec=torch"]), H100).model.layer_spec
        == "torch"
    )


def test_a_multiple_of_the_layers_becomes_layers() -> None:
    config = resolve(compose(["variant=dense_2x", "model.num_layers=3"]), CPU)
    assert (config.model.num_layers, config.model.layer_multiple) == (6, 1)
    assert resolve(config, CPU) == config
    plain = resolve(compose(["model.num_layers=6", "model.num_loops=1"]), CPU)
    assert config_hash(config) == config_hash(plain)


def test_kernels_are_taken_where_they_fit() -> None:
    for machine, overrides, kernels in (
        (CPU, [], "stock"),
        (H100, ["model=plt_1b"], "stock"),
        (BUILT, ["model=plt_1b"], "cuda"),
        (STALE, ["model=plt_1b"], "cuda"),
        (replace(BUILT, compute_capability=(10, 0)), ["model=plt_1b"], "stock"),
        (replace(BUILT, compute_capability=(8, 0)), ["model=plt_1b"], "stock"),
        (
            replace(BUILT, compute_capability=(10, 0)),
            ["model=plt_1b", "model.kernels=cuda"],
            "cuda",
        ),
        (BUILT, ["model=plt_1b", "model.num_loops=1"], "stock"),
        (BUILT, ["model=plt_1b", "precision=fp32"], "stock"),
        (BUILT, ["model=plt_1b", "model.window=300"], "stock"),
    ):
        assert resolve(compose(overrides), machine).model.kernels == kernels


def test_init_from_a_folder_that_exists(tmp_path: Path) -> None:
    assert problems(f"checkpoint.init_from={tmp_path}", "checkpoint.init_optimizer=true") == []


def test_init_from_may_be_anything_once_the_run_has_checkpoints_of_its_own(tmp_path: Path) -> None:
    asked = (f"checkpoint.init_from={tmp_path}", f"run_dir={tmp_path}")
    (tmp_path / "checkpoints" / "step_00000003").mkdir(parents=True)
    assert len(problems(*asked)) == 1  # a save that was interrupted
    (tmp_path / "checkpoints" / "step_00000003" / "manifest.json").touch()
    assert problems(*asked) == []


@pytest.mark.parametrize(
    ("path", "run_dir", "fits"),
    [
        ("src", "src", False),
        ("src", "src/", False),
        ("[other,src/docs]", "src", False),
        ("src", "src/runs/1", True),  # what most projects have
        ("src", "other", True),
        ("s3://bucket/src", "src", True),
    ],
)
def test_a_run_is_not_written_over_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, run_dir: str, fits: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems("data=files", f"path={path}", f"run_dir={run_dir}")
    assert any(f"run_dir={run_dir} holds" in p.fact for p in found) is not fits


def test_a_path_that_no_source_reads_is_an_error() -> None:
    (problem,) = problems("path=/x")
    assert problem.fix == "data=files path=/x"
    assert not problems("data=files", "path=/x")
    (problem,) = problems("data=files", "path=/x", "data.build.sources=[{kind:files,path:/y}]")
    assert problem.fix == "data=files path=/x"


def test_the_table_says_that_auto_leaves_kernels_out_on_other_gpus() -> None:
    for capability, said in (((9, 0), False), ((8, 0), True), ((10, 0), True)):
        table = replace(BUILT, compute_capability=capability).table()
        assert ("nobody has run them on this GPU" in table) == said
    assert "nobody" not in CPU.table() and "nobody" not in STALE.table()


@pytest.mark.parametrize(
    ("machine", "apex", "says"),
    [
        (CPU, False, "added up by autograd"),
        (BARE_GPU, False, "added up by autograd"),
        (H100, False, "the head's by Transformer Engine"),
        (A100, False, "the head's by Transformer Engine"),
        (H100, True, "the head's by apex"),
    ],
)
def test_the_table_says_how_weight_gradients_are_added(
    machine: Backends, apex: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopcoder.backends._importable", lambda module: apex)
    (line,) = [row for row in machine.table().splitlines() if row.startswith("weight gradients")]
    assert says in line
