"""Names of folders: always one safe folder, never shared by two names."""

from hypothesis import given
from hypothesis import strategies as st

from sidestep_schemas.layout import endpoints, safe_name

NAMES = st.text(st.characters(exclude_categories=()), max_size=200)


@given(NAMES)
def test_any_name_becomes_one_folder(name):
    safe = safe_name(name)
    assert 0 < len(safe) <= 80
    assert not safe.startswith(".")
    assert set(safe) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._=+-")


@given(NAMES, NAMES)
def test_two_names_never_share_a_folder(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


@given(st.from_regex(r"[A-Za-z0-9_.=+-]{1,80}", fullmatch=True).filter(lambda name: name.strip(".") == name))
def test_a_name_that_is_safe_stays_as_it_is(name):
    assert safe_name(name) == name


@given(st.integers(1, 65533), st.sampled_from(["127.0.0.1", "localhost", "[::1]", "gpu-7.example.org"]))
def test_a_port_stands_for_three(port, host):
    assert endpoints(f"tcp://{host}:{port}") == tuple(f"tcp://{host}:{port + offset}" for offset in range(3))
