"""Names that look like paths: stored as text, and no file outside of the data folder comes of them."""

import json
import re
from pathlib import Path

HOSTILE = [
    "../../escaped",
    "/tmp/sidestep-escaped",
    "..",
    "a\0b",
    "~/escaped",
    "x" * 300,
    "a\\..\\b",
    "\u202e\u2044etc\u2044passwd",
    "line\nbreak",
    "CON",
]
SAYS_THEM = """
import json, sys
import sidestep
names = json.loads(sys.argv[1])
for number, name in enumerate(names):
    run = sidestep.init(project=name, id=f"{name}", name=name, group=name, tags=[name], config={name: name})
    with_names = {f"{other}": float(index) for index, other in enumerate(names)}
    for _ in run.epoch(range(1, 3)):
        run.log(with_names)
        run.tensor(name, [[1.0, 2.0]])
        run.text(name, name)
        run.histogram(name, [1.0, 2.0, 3.0])
    assert run.finish(timeout=60).complete
"""


def files_below(folder):
    return set(folder.rglob("*"))


def test_hostile_names_are_stored_as_text_and_make_no_file_elsewhere(place):
    place.up()
    script = place.written(SAYS_THEM)
    before = files_below(place.root.parent)
    place.train(SAYS_THEM, json.dumps(HOSTILE))
    made = files_below(place.root.parent) - before - {script}
    assert all(path.is_relative_to(place.root) for path in made)
    assert not any(Path(place).expanduser().exists() for place in ("/tmp/sidestep-escaped", "~/escaped"))

    stored = place.rows('select project, run, name, "group" from runs')
    assert sorted(stored) == sorted((name, name, name, name) for name in HOSTILE)
    below = [path.relative_to(place.root / "runs").parts for path in (place.root / "runs").rglob("*")]
    assert all(re.fullmatch(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,99}", part) for parts in below for part in parts)
    assert len({parts[:2] for parts in below if len(parts) > 1}) == len(HOSTILE)
    for table in ("tensors", "texts", "histograms"):
        kept = {name for (name,) in place.rows(f"select distinct name from {table}")}
        assert all(any(name == kept_name or kept_name.endswith(f"/{name}") for kept_name in kept) for name in HOSTILE)
    tags = {metric for (metric,) in place.rows("select distinct metric from points")}
    told = (name if "/" in name else f"train/{name}" for name in HOSTILE)
    assert {name.replace("\0", "\ufffd") for name in told} <= tags
