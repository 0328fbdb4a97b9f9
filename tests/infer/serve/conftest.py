from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from tests.infer.serve.toy import tokenizer


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))
