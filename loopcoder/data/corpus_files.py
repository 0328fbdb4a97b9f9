"""Names of the files of a finished corpus."""

from __future__ import annotations

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"
REPORT = "report.html"
