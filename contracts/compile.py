"""Compiles TestUSD.vy into the artifact that the package carries: `python contracts/compile.py`."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from vyper import __version__ as vyper_version
from vyper import compile_code  # pyright: ignore[reportUnknownVariableType]

SOURCE = Path(__file__).with_name("TestUSD.vy")
ARTIFACT = SOURCE.parents[1] / "src/tollbook/core/contracts/TestUSD.json"


def compile_source(source: str) -> dict[str, Any]:
    """Return the artifact of a contract's source: ABI, bytecode, compiler version, source hash."""
    output = cast(dict[str, Any], compile_code(source, output_formats=["abi", "bytecode"]))
    return {
        "contract": "TestUSD",
        "compiler": f"vyper {vyper_version}",
        "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        "abi": output["abi"],
        "bytecode": output["bytecode"],
    }


if __name__ == "__main__":
    ARTIFACT.parent.mkdir(parents=True, exist_ok=True)
    ARTIFACT.write_text(json.dumps(compile_source(SOURCE.read_text()), indent=1) + "\n")
