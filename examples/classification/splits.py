"""The data of a training, as one hands it to `sidestep check-transforms`.

sidestep check-transforms examples/classification/splits.py:train examples/classification/splits.py:val
"""

from __future__ import annotations

from train import datasets, parse

train, val = datasets(parse([]))
shared_train, shared_val = datasets(parse(["--trouble", "shared-transform"]))
