"""What `ls`, `show` and `sql` print of a store."""

import json

import numpy as np
import pytest
from support.commands import call

from sidestep_collector.blocks import Batch, Event, Gap, KeySet, Moment, Progress, ScalarBlock, Stream
from sidestep_collector.commands.runs import ls, show
from sidestep_collector.commands.sql import sql
from sidestep_collector.commands.table import as_text
from sidestep_collector.store import Store
from sidestep_schemas.errors import FolderError, UsageError

KEYS = KeySet(0, 1, "step", ("train/loss_total", "mine"), ("", ""))


def fill(store, run, name, started, loss):
    stream = Stream(run.encode().ljust(8)[:8], run.encode().ljust(16)[:16], run, "digits", 0, 0)
    seq = np.arange(3)
    values = np.array([[3.0, 1.0], [2.0, np.inf], [loss, np.nan]])
    block = ScalarBlock(stream, KEYS, seq, seq * 1000, seq + 5, np.zeros(3), values)
    start = Event(
        Moment(stream, 0, started, -1, np.nan), "start", {"name": name, "started_ns": started, "config": {"lr": 1}}
    )
    gaps = [Gap(stream, 3, 2, "ring was full")]
    made = Batch(blocks=[block], items=[start], gaps=gaps, progress=[Progress(stream, 5, 2, False)])
    store.commit(made, {f"runs/digits/{run}/events.0": 99})


@pytest.fixture
def root(tmp_path):
    store = Store.open(tmp_path)
    fill(store, "abc-1", "first", 10**18, 0.5)
    fill(store, "abc-2", "second", 2 * 10**18, np.nan)
    fill(store, "xyz", "second", 3 * 10**18, 0.25)
    store.close()
    return tmp_path


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_ls_lists_the_newest_run_first(root):
    head, _, *lines = call(ls, "--dir", root).splitlines()
    assert head.split() == ["run", "project", "name", "state", "started", "steps", "loss"]
    assert [line.split()[0] for line in lines] == ["xyz", "abc-2", "abc-1"]
    assert lines[0].split()[-2:] == ["7", "0.25"]


def test_ls_as_json_is_one_strict_document(root):
    rows = strict(call(ls, "--dir", root, "--json"))
    assert [(row["run"], row["steps"], row["loss"]) for row in rows] == [
        ("xyz", 7, 0.25),
        ("abc-2", 7, None),
        ("abc-1", 7, 0.5),
    ]
    assert rows[2]["started"] == "2001-09-09T01:46:40Z"


def test_ls_of_an_empty_store_says_so(tmp_path):
    Store.open(tmp_path).close()
    assert call(ls, "--dir", tmp_path) == "no runs yet\n"


def test_a_folder_without_a_store_is_an_error_of_ours(tmp_path):
    for command, arguments in ((ls, ()), (show, ("x",)), (sql, ("select 1",))):
        with pytest.raises(FolderError, match="no store here yet"):
            call(command, *arguments, "--dir", tmp_path)


def test_show_tells_identity_delivery_values_and_files(root):
    said = call(show, "xyz", "--dir", root)
    for word in ("second", "running", "ring was full", "train/loss_total", "events.0"):
        assert word in said


@pytest.mark.parametrize("given", ["abc-1", "first"])
def test_show_finds_a_run_by_id_or_name(root, given):
    assert strict(call(show, given, "--dir", root, "--json"))["run"] == "abc-1"


def test_show_as_json_is_one_strict_document(root):
    said = strict(call(show, "x", "--dir", root, "--json"))
    assert (said["run"], said["attempts"][0]["stored"], said["attempts"][0]["lost"]) == ("xyz", 5, 2)
    assert said["gaps"][0]["records"] == 2
    assert [(m["metric"], m["step"], m["value"]) for m in said["metrics"]] == [
        ("mine", 7, None),
        ("train/loss_total", 7, 0.25),
    ]
    assert said["files"] == [{"path": "runs/digits/xyz/events.0", "bytes": 99}]


@pytest.mark.parametrize(
    ("given", "message"),
    [("abc", "2 runs: abc-1, abc-2"), ("second", "2 runs: abc-2, xyz"), ("q", "no run 'q'; there are xyz")],
)
def test_show_names_the_candidates_where_a_run_is_not_one(root, given, message):
    with pytest.raises(UsageError, match=message):
        call(show, given, "--dir", root)


def test_sql_prints_a_table_or_strict_json(root):
    query = "select run, value, step from points where metric = 'mine' and run = 'xyz' order by step"
    assert call(sql, query, "--dir", root).splitlines()[2:] == [
        "xyz      1     5",
        "xyz    inf     6",
        "xyz    nan     7",
    ]
    assert [row["value"] for row in strict(call(sql, query, "--dir", root, "--json"))] == [1.0, None, None]


@pytest.mark.parametrize("query", ["select nothing", "selec 1", "delete from runs", "select * from nowhere"])
def test_a_wrong_query_gives_the_message_of_duckdb_and_exit_code_2(root, query):
    with pytest.raises(UsageError, match="Error") as raised:
        call(sql, query, "--dir", root)
    assert raised.value.exit_code == 2


def test_a_table_fits_the_terminal_by_cutting_its_widest_columns():
    text = as_text(["short", "long"], [(1, "x" * 200), (None, "y\nz")], width=40)
    assert max(map(len, text.splitlines())) == 40
    assert text.splitlines()[2].startswith("    1  xxx")
    assert text.splitlines()[2].endswith("…")
    assert text.splitlines()[3].endswith("y z")
