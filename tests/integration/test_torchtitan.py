"""torchtitan's loggers: stand-ins with the interface of 0.3.0, or the real classes where torchtitan can be imported."""

from __future__ import annotations

from typing import Any

import pytest
from support.journal_reader import read_records, read_scalars
from support.watched import offline

from sidestep.errors import UsageError
from sidestep.torchtitan import SidestepLogger, attach

__all__ = ["offline"]

try:
    from torchtitan.components.metrics import BaseLogger, LoggerContainer
except Exception:  # noqa: BLE001 - it is seldom installed, and asks for much where it is

    class BaseLogger:  # type: ignore[no-redef]
        def log(self, metrics: dict[str, Any], step: int) -> None:
            pass

        def close(self) -> None:
            pass

    class LoggerContainer(BaseLogger):  # type: ignore[no-redef]
        def __init__(self) -> None:
            self._loggers: list[BaseLogger] = []

        def add_logger(self, logger_instance: BaseLogger) -> None:
            self._loggers.append(logger_instance)

        def log(self, metrics: dict[str, Any], step: int) -> None:
            for logger in self._loggers:
                logger.log(metrics, step)

        def close(self) -> None:
            for logger in self._loggers:
                logger.close()


class Processor:
    """What of a MetricsProcessor is needed."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger


METRICS = {"loss_metrics/global_avg_loss": 2.5, "grad_norm": 0.75, "memory/num_ooms": 0}


@pytest.mark.parametrize("logger", [LoggerContainer, BaseLogger])
def test_metrics_arrive_whether_or_not_other_loggers_are_enabled(offline: dict[str, Any], logger: Any) -> None:
    processor = Processor(logger())
    attach(processor, **offline)
    processor.logger.log(METRICS, 1)
    processor.logger.log(METRICS, 10)
    processor.logger.close()
    assert read_scalars(offline["dir"], "loss_metrics/global_avg_loss") == {1: 2.5, 10: 2.5}
    assert read_scalars(offline["dir"], "train/grad_norm") == {1: 0.75, 10: 0.75}
    assert "end" in [record.fields[0] for record in read_records(offline["dir"]) if record.kind == "lifecycle"]


def test_a_tag_goes_before_each_name(offline: dict[str, Any]) -> None:
    logger = SidestepLogger("critic", **offline)
    logger.log(METRICS, 3)
    logger.log({}, 4)
    logger.close()
    assert read_scalars(offline["dir"], "critic/grad_norm") == {3: 0.75}


def test_the_interface_is_that_of_torchtitan() -> None:
    for name in ("log", "close"):
        assert callable(getattr(SidestepLogger, name))
        assert callable(getattr(BaseLogger, name))


def test_an_unknown_keyword_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"SidestepLogger\(\) takes no 'projct'"):
        SidestepLogger(projct="x")
