"""Small configurations for tests."""

from __future__ import annotations

from typing import Any

from loopcoder.config.build import BuildConfig
from loopcoder.config.data import DataConfig
from loopcoder.config.evaluation import EvalConfig
from loopcoder.config.schema import (
    CheckpointConfig,
    Config,
    HardwareConfig,
    LoggingConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    ProfileConfig,
    ScheduleConfig,
    TrainConfig,
)


def small_model(**changes: Any) -> ModelConfig:
    """Two layers with grouped heads; small enough for dense float64 references."""
    fields: dict[str, Any] = dict(
        name="test",
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_kv_heads=2,
        head_dim=8,
        num_loops=2,
        window=6,
        rope_theta=10000.0,
        layer_spec="torch",
    )
    return ModelConfig(**(fields | changes))


def data_config(**fields: Any) -> DataConfig:
    """Make the section `data` from its fields and those of `data.build` in one."""
    own = BuildConfig.__dataclass_fields__
    build = {name: fields.pop(name) for name in list(fields) if name in own}
    return DataConfig(**fields, build=BuildConfig(**build))


def small_config(
    model: dict[str, Any] | None = None, precision: str = "fp32", **parallel: Any
) -> Config:
    """A whole config around `small_model`, for what needs one."""
    return Config(
        model=small_model(**(model or {})),
        data=DataConfig(name="test", seq_length=32, mixture={"text": 1.0, "code": 1.0}),
        # Far above the rounding noise of a gradient and far below a usual one: with a smaller eps
        # Adam turns the noise of an element near zero into a step of the size of the rate.
        optim=OptimConfig(lr=3e-4, min_lr=1e-4, schedule=ScheduleConfig(kind="constant"), eps=1e-4),
        parallel=ParallelConfig(**parallel),
        precision=PrecisionConfig(name=precision),
        checkpoint=CheckpointConfig(),
        logging=LoggingConfig(),
        hardware=HardwareConfig(),
        train=TrainConfig(max_steps=3, global_batch_size=8, micro_batch_size=2),
        eval=EvalConfig(),
        profile=ProfileConfig(),
    )
