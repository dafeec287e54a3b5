"""What a report reads out of curves, and what it makes of them."""

import hashlib
import json
import math

import numpy as np
import pytest
from support.commands import call

from sidestep_collector.blocks import Batch, EpochRows, Event, Moment, Progress, Stream
from sidestep_collector.commands.report import report
from sidestep_collector.query.epochs import ByEpoch
from sidestep_collector.query.report.curves import Course, Reduction, Spread, course, reductions, spread
from sidestep_collector.query.report.diagnosis import Facts, diagnose
from sidestep_collector.query.report.targets import against_targets, profiles_of
from sidestep_collector.store import Store
from sidestep_schemas.errors import UsageError


def by_epoch(means, **more):
    mean = np.asarray(means, dtype=float)
    columns = {"n": np.ones(len(mean)), "n_nonfinite": np.zeros(len(mean))}
    columns |= dict.fromkeys(("least", "greatest", "first", "last"), mean)
    return ByEpoch(epoch=np.arange(1.0, len(mean) + 1), mean=mean, **(columns | more))


def test_reductions_are_falls_by_half_between_epochs_or_inside_of_one():
    steps = by_epoch([0.1, 0.1, 0.01, 0.01, 0.006])
    assert reductions(steps) == [Reduction(3.0, 0.1, 0.01)]
    assert reductions(steps)[0].factor == pytest.approx(10)
    inside = by_epoch([0.1, 0.06, 0.01], first=np.array([0.1, 0.1, 0.01]), last=np.array([0.1, 0.01, 0.01]))
    assert reductions(inside) == [Reduction(2.0, 0.1, 0.01)]
    assert reductions(by_epoch([0.1, np.nan, 0.01])) == [Reduction(3.0, 0.1, 0.01)]
    assert reductions(by_epoch([0.1, 0.09, 0.08, 0.07])) == []


def test_a_cosine_that_nears_its_end_makes_no_steps_and_a_schedule_does():
    epochs = np.arange(12)
    cosine = reductions(by_epoch(0.05 * (1 + np.cos(np.pi * epochs / 12))))
    assert [(drop.epoch, drop.is_step) for drop in cosine] == [(11, False), (12, False)]
    assert [drop.is_step for drop in reductions(by_epoch([0.1, 0.1, 0.01, 0.01, 0.001]))] == [True, True]


def test_a_course_has_its_best_and_the_plateau_that_follows_the_last_gain():
    falling = course(by_epoch([4, 3, 2, 1.5, 1.2]), better="lower")
    assert falling == Course(5, 4, 1.2, 1.2, 5, None)
    settled = course(by_epoch([4, 2, 1, 1.01, 0.999, 1.02]), better="lower")
    assert (settled.best, settled.best_epoch, settled.plateau_since) == (0.999, 5, 3)
    rising = course(by_epoch([0.1, 0.5, 0.9, np.nan, 0.9, 0.9, 0.9]), better="higher")
    assert (rising.epochs, rising.best_epoch, rising.plateau_since) == (6, 3, 3)
    flat = course(by_epoch([4.6, 4.6, 4.6, 4.6]), better="lower")
    assert flat.plateau_since == 1
    assert course(by_epoch([np.nan]), better="lower") is None


def test_a_spread_weighs_epochs_by_their_values():
    found = spread(by_epoch([1.0, 3.0], n=np.array([3.0, 1.0]), least=np.array([0.5, 2]), greatest=np.array([2, 9.0])))
    assert found == Spread(1.5, 0.5, 9.0, 1.0, 3.0)


def flat(value, epochs=20, since=4.0):
    return Course(epochs, value, value, value, 3.0, since)


TROUBLES = {
    "lr_dropped_early": {
        "loss": Course(30, 4.6, 3.0, 3.0, 6, 6.0),
        "rate": (Reduction(5, 0.1, 0.01),),
    },
    "early_plateau": {"loss": Course(30, 4.6, 4.0, 4.0, 5, 5.0), "val_acc": Course(30, 0.02, 0.11, 0.12, 5, 5.0)},
    "vanishing_gradients": {"gradient": Spread(3e-3, 1e-3, 8e-3, 0, 0), "update": Spread(2e-7, 0, 1e-6, 0, 0)},
    "chance_level": {"loss": flat(4.605), "val_acc": flat(0.0101), "config": {"num_classes": 100}},
    "amp_clip_order": {"amp_scale": 65536.0, "norm_after_clip": 1.0, "norm_at_step": 1 / 65536},
    "shared_transform": {"shared_data": "both loaders read one ImageFolder"},
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_is_named_with_what_shows_it_and_what_to_change(trouble):
    facts = Facts(**({"config": {}, "epochs": 20} | TROUBLES[trouble]))
    (found,) = diagnose(facts)
    assert found.name == trouble
    assert found.evidence
    assert found.advice


@pytest.mark.parametrize(
    ("profile", "is_told"), [("common", True), ("classification", True), ("slope", False), ("mine", False)]
)
def test_advice_on_labels_and_augmentation_is_for_classifiers(profile, is_told):
    facts = Facts(config={}, epochs=30, profile=profile, **TROUBLES["early_plateau"])
    assert [found.name for found in diagnose(facts)] == ["early_plateau"] * is_told


def test_a_healthy_run_is_left_in_peace():
    healthy = Facts(
        config={"num_classes": 10, "weight_decay": 1e-2},
        epochs=20,
        rate=(Reduction(18, 1e-3, 1e-4),),
        rate_last=1e-4,
        loss=Course(20, 2.3, 0.01, 0.01, 20, 12.0),
        val_loss=Course(20, 2.2, 0.05, 0.04, 15, 9.0),
        acc=Course(20, 0.2, 0.99, 0.99, 20, 9.0),
        val_acc=Course(20, 0.3, 0.98, 0.98, 12, 8.0),
        gradient=Spread(0.5, 1e-3, 3.0, 2.0, 0.1),
        update=Spread(1e-3, 1e-5, 1e-2, 1e-3, 1e-4),
        amp_scale=65536.0,
        norm_after_clip=0.9,
        norm_at_step=0.9,
    )
    assert diagnose(healthy) == []


def test_of_a_trouble_and_what_follows_from_it_the_cause_is_told():
    chance = TROUBLES["chance_level"] | {"rate": (Reduction(3, 0.1, 0.01),)}
    names = [found.name for found in diagnose(Facts(epochs=20, **chance))]
    assert names[0] == "chance_level"
    assert "early_plateau" not in names
    clipped = TROUBLES["amp_clip_order"] | TROUBLES["vanishing_gradients"]
    assert [found.name for found in diagnose(Facts(config={}, epochs=20, **clipped))] == ["amp_clip_order"]
    vanished = TROUBLES["chance_level"] | TROUBLES["vanishing_gradients"]
    assert [found.name for found in diagnose(Facts(epochs=20, **vanished))] == ["vanishing_gradients"]


def test_the_end_of_a_cosine_is_no_early_drop():
    late = {"loss": Course(12, 2.3, 0.1, 0.1, 12, 9.0), "rate": (Reduction(10, 0.03, 0.012, is_step=False),)}
    assert diagnose(Facts(config={}, epochs=12, **late)) == []


def test_a_shared_transform_that_draws_no_random_numbers_is_only_mentioned():
    for is_random, severity in ((True, "warning"), (False, "info")):
        (found,) = diagnose(Facts(config={}, epochs=3, shared_data="one Images object", shared_is_random=is_random))
        assert found.severity == severity


def test_last_values_are_held_against_what_the_profile_asks():
    metrics = {
        "train/mean_grad_norm": by_epoch([1.0, 0.001, np.nan]),
        "train/weight_change": by_epoch([1e-3, 1e-4]),
        "train/gradients/stem": by_epoch([1.0, 2.0]),
        "train/gradients/head": by_epoch([1.0, 1e-9]),
        "train/loss_total": by_epoch([2.3, 0.5]),
        "mine/own": by_epoch([1.0]),
    }
    profiles, why = profiles_of("r", {"profile": "classification"}, metrics)
    assert ([profile.name for profile in profiles], why) == (["common", "classification"], "")
    asked = {one.metric: (one.last, one.state) for one in against_targets(profiles, metrics)}
    assert asked == {
        "train/gradients/head (worst of 2)": (1e-9, "worry"),
        "train/loss_total": (0.5, ""),
        "train/mean_grad_norm": (0.001, "worry"),
        "train/weight_change": (1e-4, "ok"),
    }


def test_a_run_without_a_profile_is_read_by_the_one_that_fits_its_metrics():
    profiles, why = profiles_of("r", {}, ["train/acc", "val/acc"])
    assert ([profile.name for profile in profiles], why) == (["common", "classification"], "by its metrics")
    assert [profile.name for profile in profiles_of("r", {}, ["mine/own"])[0]] == ["common"]


def test_advice_names_the_settings_that_the_run_has():
    facts = Facts(config={"label_smoothing": 0.1, "weight_decay": 1e-5}, epochs=30, **TROUBLES["early_plateau"])
    (found,) = diagnose(facts)
    assert "label smoothing is 0.1: lower it to 0.05 or 0" in found.advice
    assert "weight decay is 1e-05: low enough" in found.advice


def rows_of(stream, epoch, values):
    names = tuple(values)
    mean = np.array(list(values.values()), dtype=float)
    ones, seq = np.ones(len(names), dtype=np.int64), np.full(len(names), epoch)
    return EpochRows(stream, epoch, names, ones, 0 * ones, mean, mean, mean, 0 * mean, mean, mean, seq, seq)


@pytest.fixture
def root(tmp_path):
    """A run at chance level, still going, resumed once: epochs 1 to 6, of which the last attempt has 4 to 6 anew."""
    store = Store.open(tmp_path)
    uid = hashlib.md5(b"bad").digest()
    for attempt, epochs in enumerate([range(1, 6), range(4, 7)]):
        stream = Stream(hashlib.sha256(bytes([attempt])).digest()[:8], uid, "bad", "images", 0, attempt)
        start = Event(
            Moment(stream, 0, 10**18, -1, math.nan), "start", {"name": "<b>bad*", "config": {"num_classes": 100}}
        )
        made = [
            rows_of(stream, epoch, {"train/loss_total": 4.6 + attempt / 100, "train/lr": 0.1, "val/acc": 0.01})
            for epoch in epochs
        ]
        store.commit(Batch(items=[start], epochs=made, progress=[Progress(stream, 9, 0, False)]), {})
    store.close()
    return tmp_path


def reported(root, *arguments):
    return call(report, "bad", "--dir", root, *arguments)


def test_a_run_that_goes_on_is_reported_with_the_latest_attempt_of_each_epoch(root):
    document = json.loads(reported(root, "--json"))
    loss = next(section for section in document["sections"] if section["title"] == "Loss")
    (plot,) = loss["plots"]
    epochs, means = plot["curves"]["train/loss_total"]
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert means == pytest.approx([4.6] * 3 + [4.61] * 3)
    assert document["facts"]["state"] == "running"
    assert [found["name"] for found in document["diagnoses"]] == ["chance_level"]


def test_a_report_is_text_markdown_and_a_page_of_one_file(root, tmp_path):
    assert "it predicts no better than chance" in reported(root)
    reported(root, "--out", tmp_path / "r.md")
    markdown = (tmp_path / "r.md").read_text()
    assert markdown.startswith("# images / \\<b\\>bad\\*")
    assert "| training | 4.6 | 4.61 | 4.6 | 1 | since epoch 1 |" in markdown
    reported(root, "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 3
    assert "&lt;b&gt;bad*" in page
    assert "<b>" not in page
    assert "<script" not in page
    with pytest.raises(UsageError, match=r"written as \.md, \.html or \.json"):
        reported(root, "--out", tmp_path / "r.pdf")
