"""No name that comes over the wire leads out of the folder of its run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep_collector.keys import KeyRing
from sidestep_schemas.errors import UsageError
from sidestep_schemas.layout import run_dir

HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=200),
    st.lists(st.sampled_from(["..", ".", "/", "\\", "\0", "~", "a", " ", "\u2044", "\n", "%2e", ":"]), max_size=12).map(
        "".join
    ),
)


@given(HOSTILE, HOSTILE)
def test_a_run_has_a_folder_of_its_own_two_below_runs(project, run):
    root = Path("/data")
    folder = run_dir(root, project, run)
    assert folder.parts[:3] == ("/", "data", "runs")
    assert len(folder.parts) == 5
    assert not set(folder.parts[3:]) & {"..", "."}
    assert "\0" not in str(folder)


@given(HOSTILE.map(lambda name: f"{name}/"))
def test_a_name_with_a_separator_names_no_key(name):
    with pytest.raises(UsageError):
        KeyRing(Path("/nonexistent/keys")).new(name)


@given(HOSTILE.map(lambda name: f".{name}"))
def test_a_name_that_begins_with_a_dot_names_no_key(name):
    with pytest.raises(UsageError):
        KeyRing(Path("/nonexistent/keys")).new(name)
