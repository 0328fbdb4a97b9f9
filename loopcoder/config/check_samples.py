"""Whether the continuations that are asked for (`eval.samples`) can be written."""

from __future__ import annotations

from collections.abc import Iterator

from loopcoder.config.schema import Config
from loopcoder.errors import Problem, counted


def check_samples(config: Config) -> Iterator[Problem]:
    """Yield why an evaluation cannot write the continuations that are asked for."""
    asked, prompts = config.eval, config.eval.sample_prompts
    if asked.samples and not asked.happens:
        yield Problem(
            f"eval.samples={asked.samples} eval.interval=null eval.at_end=false",
            "continuations are written by evaluations, and there are none",
            "eval.samples=0, or eval.at_end=true",
        )
    if prompts is not None:
        yield from _given(config, prompts)
        return
    most = config.model.max_position_embeddings
    if asked.samples and asked.sample_prompt_tokens + asked.sample_tokens > most:
        half = max(1, most // 2)
        yield Problem(
            f"eval.sample_prompt_tokens={asked.sample_prompt_tokens} "
            f"eval.sample_tokens={asked.sample_tokens} model.max_position_embeddings={most}",
            "a beginning and its continuation are longer than the model's positions",
            f"eval.sample_prompt_tokens={min(asked.sample_prompt_tokens, half)} "
            f"eval.sample_tokens={min(asked.sample_tokens, half)}",
        )


def _given(config: Config, prompts: list[str]) -> Iterator[Problem]:
    asked = config.eval
    there = f"eval.sample_prompts has {counted(len(prompts), 'text')}"
    empty = [f"eval.sample_prompts.{i}" for i, prompt in enumerate(prompts) if not prompt]
    if not prompts or empty:
        what = f"empty: {', '.join(empty)}" if empty else "null takes held-out documents"
        fix = "a text for each, or leave it out" if empty else "give texts, or null"
        yield Problem(there, f"a continuation needs a beginning; {what}", fix)
    elif asked.samples < len(prompts):
        yield Problem(
            f"{there}, eval.samples={asked.samples}",
            "some of them would have no continuation",
            f"eval.samples={len(prompts)}",
        )
    elif asked.samples > len(prompts) and asked.sample_temperature == 0:
        yield Problem(
            f"{there}, eval.samples={asked.samples} eval.sample_temperature=0",
            "the most probable continuation of a text is always the same",
            f"eval.samples={len(prompts)}, or eval.sample_temperature=0.8",
        )
