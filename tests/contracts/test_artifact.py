"""The committed artifact is what its source compiles to."""

import json
import runpy
from pathlib import Path

from tollbook.core.local_chain import read_token_artifact

CONTRACTS = Path(__file__).parents[2] / "contracts"


def test_the_committed_artifact_is_what_the_source_compiles_to() -> None:
    compiled = runpy.run_path(str(CONTRACTS / "compile.py"))["compile_source"](
        (CONTRACTS / "TestUSD.vy").read_text()
    )
    assert read_token_artifact() == json.loads(json.dumps(compiled))
