"""Training and validation data that share what they must not are told from those that do not."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from sidestep import transforms
from sidestep_schemas.errors import UsageError


class Pictures(Dataset):
    """Pictures of 4 x 4, with a transform."""

    def __init__(self, transform=None, count=40, classes=("cat", "dog")):
        self.pictures = torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(0))
        self.transform = transform
        self.classes = list(classes)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture = self.pictures[index]
        return (picture if self.transform is None else self.transform(picture)), index % 2


def jitter(picture):
    return picture + 0.01 * torch.rand(4, 4)


def normalise(picture):
    return (picture - 0.5) / 0.29


def by_name(train, val):
    return {check.name: check for check in transforms.check(train, val)}


def test_two_objects_over_one_split_are_as_they_should_be():
    train, val = Subset(Pictures(jitter), range(30)), Subset(Pictures(), range(30, 40))
    assert {check.severity for check in transforms.check(train, val)} == {"ok"}


def test_one_object_behind_both_splits_is_found_through_any_wrapping():
    base = Pictures(jitter)
    found = by_name(ConcatDataset([Subset(base, range(30))]), Subset(Subset(base, range(25, 40)), range(5, 15)))
    assert found["one object"].severity == "critical"
    assert "make two Pictures objects" in found["one object"].change
    assert found["augmentation"].severity == "warning"


def test_one_object_without_a_transform_is_only_mentioned():
    base = TensorDataset(torch.rand(40, 3), torch.zeros(40))
    assert by_name(Subset(base, range(30)), Subset(base, range(30, 40)))["one object"].severity == "info"


def test_one_object_whose_transform_is_none_shares_nothing_yet():
    base = Pictures()
    found = by_name(Subset(base, range(30)), Subset(base, range(30, 40)))["one object"]
    assert found.severity == "info"
    assert "no transform" in found.seen
    assert found.change.startswith("before you give it a transform, which both would have, make two Pictures objects")


def test_of_several_shared_objects_one_with_a_transform_is_enough():
    plain, jittered = Pictures(), Pictures(jitter)
    both = ConcatDataset([plain, jittered])
    assert by_name(both, both)["one object"].severity == "critical"


def test_one_transform_in_two_objects_is_found():
    found = by_name(Pictures(normalise), Pictures(normalise))
    assert found["one object"].severity == "ok"
    assert found["one transform"].severity == "warning"


def test_validation_that_is_augmented_alone_is_worse_than_both():
    assert by_name(Pictures(), Pictures(jitter))["augmentation"].severity == "critical"
    assert by_name(Pictures(), Pictures())["augmentation"].severity == "info"


def test_scales_that_differ_are_found():
    found = by_name(Pictures(normalise), Pictures())["scale"]
    assert found.severity == "critical"
    assert "validation mean 0.495" in found.seen


def test_samples_in_both_are_counted():
    base = Pictures()
    found = by_name(Subset(base, range(30)), Subset(base, range(25, 40)))["overlap"]
    assert found.seen.startswith("5 of 15 validation samples")
    assert found.severity == "critical"


def test_classes_that_are_numbered_otherwise_are_found():
    assert by_name(Pictures(), Pictures(classes=("dog", "cat")))["classes"].severity == "critical"
    assert by_name(Pictures(), Pictures())["classes"].severity == "ok"


def test_loaders_and_functions_stand_for_their_dataset(tmp_path, monkeypatch):
    module = tmp_path / "my_data.py"
    module.write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "data = TensorDataset(torch.zeros(8, 2))\nloader = DataLoader(data, 4)\ndef make():\n    return data\nnumber = 3\n"
    )
    places = [transforms.load(f"{module}:{name}") for name in ("data", "loader", "make")]
    assert len({id(place) for place in places}) == 1
    assert isinstance(DataLoader(places[0]).dataset, TensorDataset)
    for wrong, said in (("number", "is int"), ("none", "has no 'none'")):
        with pytest.raises(UsageError, match=said):
            transforms.load(f"{module}:{wrong}")
    with pytest.raises(UsageError, match="there is no file"):
        transforms.load(f"{tmp_path}/other.py:x")
    with pytest.raises(UsageError, match="no module 'no_such_module'"):
        transforms.load("no_such_module:x")
    with pytest.raises(UsageError, match="write module:name"):
        transforms.load("module")


def test_the_command_names_what_is_wrong_and_ends_with_1(tmp_path):
    (tmp_path / "shared.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset, Subset\n"
        "class D(TensorDataset):\n    transform = None\n"
        "base = D(torch.arange(20.0))\ntrain, val = Subset(base, range(15)), Subset(base, range(10, 20))\n"
    )
    command = [sys.executable, "-m", "sidestep", "check-transforms", "--json", "shared:train", "shared:val"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    severities = {check["name"]: check["severity"] for check in json.loads(done.stdout)}
    assert (severities["one object"], severities["overlap"]) == ("info", "critical")
