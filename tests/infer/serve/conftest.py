from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from tests.infer.serve.toy import Stand, tokenizer


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def stand(tokens: Tokenizer, seed: int) -> Stand:
    return Stand(tokens, seed)


@pytest.fixture
def client(stand: Stand) -> Iterator[TestClient]:
    with stand.client() as client:
        yield client
