"""The rules of the house that a program can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tollbook"
LINES_MAX = 500
MODULES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_ROOMS = {"utils", "helpers", "common", "misc", "lib"}


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(SOURCE)) for path in MODULES])
def test_a_module_says_what_it_is_and_is_short(path: Path) -> None:
    text = path.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path} begins with one line on what it is"
    assert text.count("\n") <= LINES_MAX, f"{path} has a second noun in it"


def test_nothing_is_called_utils() -> None:
    rooms = {part for path in MODULES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert not rooms & FORBIDDEN_ROOMS


def test_money_is_never_a_float() -> None:
    """No float() in the books and the money paths: amounts are integers of minor units or Decimals."""
    for path in sorted((SOURCE / "books").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "float", f"{path}:{node.lineno}"


def test_every_migration_can_go_back() -> None:
    for up in sorted(SOURCE.rglob("migrations/*.up.sql")):
        assert up.with_name(up.name.replace(".up.", ".down.")).exists(), up


def test_the_readme_example_is_the_example_that_is_tested() -> None:
    example = (ROOT / "examples" / "paid_api.py").read_text()
    body = example.partition("\n\n")[2].strip()
    assert body in (ROOT / "README.md").read_text()
