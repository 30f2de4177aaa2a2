"""Compiles the contracts: `python contracts/compile.py`. The package carries TestUSD alone."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from vyper import __version__ as vyper_version
from vyper import compile_code  # pyright: ignore[reportUnknownVariableType]

CONTRACTS = Path(__file__).parent
PACKAGED = CONTRACTS.parent / "src/tollbook/core/contracts"
FOR_TESTS = CONTRACTS.parent / "tests/fixtures/contracts"
SHIPPED = "TestUSD"


def compile_contract(source: Path) -> dict[str, Any]:
    """Return a contract's artifact: ABI, code, compiler version, source hash.

    The code is the creation's for the token, which has a constructor, and the runtime's for all others,
    which are put at their fixed addresses as they are.
    """
    text, code = source.read_text(), "bytecode" if source.stem == SHIPPED else "bytecode_runtime"
    output = cast(dict[str, Any], compile_code(text, output_formats=["abi", code]))
    return {
        "contract": source.stem,
        "compiler": f"vyper {vyper_version}",
        "source_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "abi": output["abi"],
        code: output[code],
    }


def find_artifact(source: Path) -> Path:
    """Return where a contract's artifact is kept."""
    return (PACKAGED if source.stem == SHIPPED else FOR_TESTS) / f"{source.stem}.json"


if __name__ == "__main__":
    for contract in sorted(CONTRACTS.glob("*.vy")):
        artifact = find_artifact(contract)
        artifact.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_text(json.dumps(compile_contract(contract), indent=1) + "\n")
