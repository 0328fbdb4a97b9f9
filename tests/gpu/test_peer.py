"""The plain PyTorch peer on a GPU: FlexAttention keeps documents apart as a CPU's mask does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.configs import small_config
from tests.reference import relative

pytestmark = pytest.mark.gpu

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
VOCAB, EOD = 128, 0


@pytest.mark.parametrize("whole", [False, True], ids=["attention", "model"])
def test_packed_documents_are_those_of_a_cpu(seed, monkeypatch, whole):
    """With attention alone compiled, and with the whole model."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from peer import summed_loss
    from peer_model import Peer, initialise

    from loopcoder.data.batch import make_batch

    config = small_config(dict(num_loops=1, hidden_size=64, head_dim=16))
    generator = torch.Generator().manual_seed(seed)
    cpu = Peer(config.model, VOCAB)
    initialise(cpu, seed, 0.02)
    gpu = Peer(config.model, VOCAB).cuda()
    gpu.load_state_dict(cpu.state_dict())
    if whole:
        gpu.compile(dynamic=False)
    for _ in range(2):  # the second batch has a mask of its own
        rows = torch.randint(1, VOCAB, (2, 301), generator=generator)
        rows[torch.rand(rows.shape, generator=generator) < 0.03] = EOD
        ids = torch.zeros(2, dtype=torch.long)
        batch = make_batch(rows, ids, ids, EOD)
        losses = [summed_loss(peer, batch, config, 10000.0) for peer in (cpu, gpu)]
        for loss in losses:
            loss.backward()
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    for here, there in zip(cpu.parameters(), gpu.parameters(), strict=True):
        assert relative(there.grad.cpu(), here.grad.double()) < 1e-3
