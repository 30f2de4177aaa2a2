"""The committed artifacts are what their sources compile to."""

import json
import runpy
from pathlib import Path

import pytest

from tollbook.core.local_chain import read_token_artifact

CONTRACTS = Path(__file__).parents[2] / "contracts"
COMPILER = runpy.run_path(str(CONTRACTS / "compile.py"))


@pytest.mark.parametrize("source", sorted(CONTRACTS.glob("*.vy")), ids=lambda source: source.stem)
def test_the_committed_artifact_is_what_the_source_compiles_to(source: Path) -> None:
    compiled = json.loads(json.dumps(COMPILER["compile_contract"](source)))
    assert json.loads(COMPILER["find_artifact"](source).read_text()) == compiled


def test_the_package_carries_the_token() -> None:
    assert read_token_artifact()["contract"] == "TestUSD"
