"""Reports, and a configuration that tells of its changes."""

import json

from sidestep.report import DeliveryReport, LoggedConfig


def test_a_report_is_complete_when_nothing_waits_or_is_lost():
    assert DeliveryReport(3, 3, 0, 0).complete
    assert not DeliveryReport(3, 2, 1, 0).complete
    assert not DeliveryReport(3, 2, 0, 1).complete


def test_a_report_says_in_one_line_what_became_of_the_records():
    text = str(DeliveryReport(1234, 1000, 200, 34, {"the disk is full": 34}, journal="/j"))
    assert text == (
        "sent 1,234, committed 1,000, lost 34, 200 wait in /j: `sidestep up` or `sidestep sync` delivers them "
        "(34: the disk is full)"
    )


def test_a_configuration_is_a_dict_that_tells_of_each_change():
    told = []
    config = LoggedConfig({"a": 1}, lambda content: told.append(dict(content)))
    config["b"] = 2
    config.update(c=3)
    config |= {"d": 4}
    config.setdefault("a", 9)
    config.setdefault("e", 5)
    assert config.pop("missing", None) is None
    config.pop("e")
    del config["d"]
    assert isinstance(config, dict)
    assert json.loads(json.dumps(config)) == {"a": 1, "b": 2, "c": 3}
    assert told[0] == {"a": 1, "b": 2}
    assert told[-1] == {"a": 1, "b": 2, "c": 3}
