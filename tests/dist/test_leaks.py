"""Nothing crosses a document border, runs back from a later position, or enters another microbatch,
in any layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from loopcoder.data.batch import Batch
from loopcoder.data.sampler import samples_of_rank
from loopcoder.model.documents import Documents
from tests.dist.launch import in_processes
from tests.dist.layouts import (
    DOMAINS,
    LAYOUTS,
    VOCAB,
    Asked,
    Case,
    build,
    fresh_seed,
    gather,
    gradients,
    in_layouts,
    random_weights,
)
from tests.model.test_reference import random_starts

ROWS, LENGTH, MICRO_BATCH = 8, 16, 2
assert ROWS * LENGTH == VOCAB, "every position has a token id of its own"
EMBEDDING = "embedding.word_embeddings.weight"

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    # model, parallel, isolate
    "r2": (dict(num_loops=2), {}, True),
    "r3 recompute": (dict(num_loops=3), dict(recompute="full"), True),
    "r3 query gate": (dict(num_loops=3, gate="query"), {}, True),
    "r3 own kv": (dict(num_loops=3, kv_sharing="own"), {}, True),
    "r2 recompute": (dict(num_loops=2), dict(recompute="full"), True),
    "r3 rows": (dict(num_loops=3), {}, False),
}


def case(layout: str, variant: str) -> Case:
    _, layers, parallel = LAYOUTS[layout]
    model, more, isolate = VARIANTS[variant]
    return Case(f"{layout} {variant}", model | dict(num_layers=layers), parallel | more, isolate)


CASES = {
    world: [case(name, v) for name in LAYOUTS if LAYOUTS[name][0] == world for v in VARIANTS]
    for world in (2, 4)
}


@dataclass(frozen=True)
class Draw:
    """A global batch in which each position has a token id of its own, and the losses that count.

    A row of the embedding's gradient is then the gradient for the embedding at one position.
    """

    tokens: torch.Tensor
    """[ROWS, LENGTH]"""
    docs: Documents
    """of the whole batch"""
    counts: torch.Tensor
    """Positions whose loss is taken. [ROWS, LENGTH], bool"""

    def microbatches(self, dp_rank: int, dp_size: int) -> list[Batch]:
        """Return what a data-parallel rank trains on."""
        out = []
        for rows in samples_of_rank(torch.arange(ROWS).numpy(), dp_rank, dp_size, MICRO_BATCH):
            index = torch.from_numpy(rows.copy())
            start = self.docs.start[index]
            docs = (
                Documents.packed(start)
                if self.docs.is_packed
                else Documents.whole_rows(*start.shape, start.device)
            )
            batch = Batch(
                tokens=self.tokens[index],
                labels=self.tokens[index].roll(-1, 1),
                loss_mask=self.counts[index].float(),
                position_ids=docs.position_ids,
                document_start=docs.start,
                sample_ids=index,
                domain_ids=index % DOMAINS,
                label_ids=(index % DOMAINS)[:, None].expand_as(self.tokens[index]),
                cu_seqlens=docs.cu_seqlens,
                max_seqlen=docs.max_seqlen,
            )
            out.append(batch)
        return out

    def allowed(self) -> torch.Tensor:
        """Positions that a counted loss may, and does, depend on: its document up to it."""
        out = torch.zeros_like(self.counts)
        for row, t in self.counts.nonzero().tolist():
            out[row, self.docs.start[row, t] : t + 1] = True
        return out


def draws(seed: int, isolate: bool, count: int) -> Iterator[Draw]:
    """Draw the loss of one position in `count` different microbatches; then those of every other
    document in every other microbatch, which see a leak over most borders at once."""
    generator = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    first_rows = MICRO_BATCH * torch.randperm(ROWS // MICRO_BATCH, generator=generator)[:count]
    for first_row in [*first_rows.tolist(), None]:
        docs = Documents.packed(random_starts(generator, ROWS, LENGTH))
        if not isolate:
            docs = Documents.whole_rows(ROWS, LENGTH, torch.device("cpu"))
        counts = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
        if first_row is not None:
            counts[first_row + below(MICRO_BATCH), below(LENGTH)] = True
        else:
            document = (docs.position_ids == 0).flatten().cumsum(0).view(ROWS, LENGTH)
            microbatch = torch.arange(ROWS)[:, None] // MICRO_BATCH
            counts = (document % 2 == below(2)) & (microbatch % 2 == below(2))
        tokens = torch.randperm(VOCAB, generator=generator).view(ROWS, LENGTH)
        yield Draw(tokens, docs, counts)


def run(_: int, cases: list[Case], seed: int, count: int) -> list[list[str]]:
    """Return for each case what reached where it must not, or failed to reach where it must."""
    from loopcoder.train.step import forward_backward

    out = []
    for number, (case, config, ranks) in enumerate(in_layouts(cases)):
        state = build(config, ranks, random_weights(case, ranks, seed))
        wrong = []
        for draw in draws(seed + number, case.isolate, count):
            batches = draw.microbatches(ranks.dp_rank, ranks.dp_size)
            sums = forward_backward(state, batches, DOMAINS)
            assert sums[1].sum() == draw.counts.sum()
            mine = {n: x for n, x in gradients(state).items() if n == EMBEDDING}
            reached = (gather(state, mine)[EMBEDDING] != 0).any(1)[draw.tokens]  # NaN is not 0
            if not torch.equal(reached, draw.allowed()):
                wrong.append(
                    f"loss at {draw.counts.nonzero().tolist()}: "
                    f"reached {(reached & ~draw.allowed()).nonzero().tolist()}, "
                    f"missed {(draw.allowed() & ~reached).nonzero().tolist()}, "
                    f"documents start at {draw.docs.start.tolist()}"
                )
        out.append(wrong)
    return out


def leaks(world: int, cases: list[Case], count: int) -> dict[str, list[str]]:
    found = in_processes(world, run, cases, fresh_seed(), count)[0]
    return dict(zip((c.name for c in cases), found, strict=True))


@pytest.fixture(scope="module")
def full(asked: Asked) -> dict[str, list[str]]:
    microbatches = ROWS // MICRO_BATCH
    found: dict[str, list[str]] = {}
    for world, cases in CASES.items():
        if mine := asked(cases):
            found |= leaks(world, mine, microbatches)
    return found


@pytest.mark.dist_full
@pytest.mark.parametrize("name", [c.name for c in CASES[2] + CASES[4]])
def test_nothing_leaks_in_any_layout(full: dict[str, list[str]], name: str) -> None:
    assert not full[name]
