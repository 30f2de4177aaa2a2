"""`tollbook settlement`: files, what is told of them, and refusals."""

import asyncio
import json
from pathlib import Path

import pytest

from fixtures.orders import fail_command, tell_no_limits
from tollbook.core.database import Database
from tollbook.entrypoints.cli import run

PAYEE = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def fail(url: str, command_id: str) -> None:
    async def go() -> None:
        async with Database(url) as database, database.write() as tx:
            await fail_command(tx, command_id)
            await tell_no_limits(tx)

    asyncio.run(go())


def test_commands_are_sent_listed_shown_taken_back_and_tried_again(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def settle(*arguments: str) -> tuple[int, str, str]:
        try:
            code = run(["settlement", *arguments, "--database-url", database_url])
        except SystemExit as end:
            code = int(str(end.code))
        told = capsys.readouterr()
        return code, told.out, told.err

    file = tmp_path / "commands.ndjson"
    lines = [{"command_id": f"c{nth}", "amount": "1.50", "payee": PAYEE} for nth in range(3)]
    file.write_text("\n".join(map(json.dumps, [*lines, {"command_id": "bad", "amount": "NaN"}])))
    code, out, said = settle("ingest", str(file))
    assert (code, said.startswith("line 4: amount")) == (1, True), said
    assert "accepted" in out
    assert settle("ingest", "--dry-run", str(file))[0] == 2  # a line of it is none
    array = tmp_path / "commands.json"
    array.write_text(json.dumps(lines, indent=2))
    code, out, _ = settle("ingest", str(array), "--json")
    *results, counts = map(json.loads, out.splitlines())
    assert (code, [result["replayed"] for result in results]) == (0, [True] * 3)
    assert counts == {"lines": 3, "accepted": 3, "replayed": 3, "rejected": 0}

    forecasts = json.loads(settle("ingest", "--dry-run", str(array), "--json")[1])
    assert [one["command_id"] for one in forecasts] == ["c0", "c1", "c2"]

    listed = json.loads(settle("list", "--json")[1])
    assert [command["command_id"] for command in listed] == ["c2", "c1", "c0"]
    assert [
        command["command_id"] for command in json.loads(settle("list", "--json", "--after", "c1")[1])
    ] == ["c0"]
    assert "1.5" in settle("list")[1]
    code, out, said = settle("list", "--json", "--limit", "2")
    assert ([command["command_id"] for command in json.loads(out)], said) == (
        ["c2", "c1"],
        "There are more: --after c1 shows what follows.\n",
    )
    assert settle("list", "--limit", "3")[2] == ""

    assert settle("cancel", "c0", "--reason", "not needed")[0] == 0
    shown = json.loads(settle("show", "c0", "--json")[1])
    assert shown["command"]["status"] == "cancelled"
    assert [move["reason"] for move in shown["history"]] == [None, "not needed"]
    assert "not needed" in settle("show", "c0")[1]
    assert settle("retry", "c0")[0] == 1

    fail(database_url, "c1")
    assert json.loads(settle("retry", "c1", "--json")[1])["round"] == 1
    code, _, said = settle("show", "nothing")
    assert (code, said.count("\n")) == (1, 1)
