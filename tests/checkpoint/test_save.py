"""What a save that failed says: the reason, and what mends that and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from loopcoder.checkpoint import save
from loopcoder.checkpoint.save import _disk_errors
from loopcoder.errors import EXIT_NO_RETRY, EXIT_RETRY, LoopcoderError


@pytest.mark.parametrize(
    ("error", "free", "says", "fix", "code"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/run/tokenizer.json"),
            1 << 40,
            "/run/tokenizer.json is missing",
            "start the same command again",
            EXIT_RETRY,
        ),
        (PermissionError(errno.EACCES, "denied"), 1 << 40, "denied", "see to", EXIT_NO_RETRY),
        (OSError(errno.EIO, "Input/output error"), 1 << 40, "Input/output", "see to", 76),
        (OSError(errno.ENOSPC, "No space left"), 1 << 40, "disk is full", "free space", 76),
        # megatron's writer says less than that
        (FileNotFoundError(errno.ENOENT, "x", ".metadata"), 0, "disk is full", "free space", 76),
    ],
)
def test_a_save_that_fails_names_its_reason(
    error: OSError,
    free: int,
    says: str,
    fix: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(save, "free_bytes", lambda _: free)
    with pytest.raises(LoopcoderError) as raised, _disk_errors(tmp_path / "step"):
        raise error
    assert raised.value.exit_code == code
    fact, _, mend = str(raised.value).partition("why: ")
    assert says in fact and fix in mend
    assert ("free space" in mend) == (says == "disk is full")
