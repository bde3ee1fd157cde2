"""The stages' options and the configuration's are the same ones, with the same defaults."""

from dataclasses import fields
from typing import Any

import pytest

from rpi_daemon.actuator import ActuatorConfig
from rpi_daemon.allocator import AllocatorConfig
from rpi_daemon.config import schema
from rpi_daemon.corrector import CorrectorConfig
from rpi_daemon.guard import GuardConfig

ELSEWHERE = {"writes_per_day"}  # an option of the PDU


@pytest.mark.parametrize(
    ("options", "section"),
    [
        (CorrectorConfig, schema.Corrector),
        (AllocatorConfig, schema.Allocator),
        (GuardConfig, schema.Guard),
        (ActuatorConfig, schema.Actuator),
    ],
)
def test_every_option_can_be_configured_and_has_one_default(options: Any, section: Any) -> None:
    ours = {f.name: f.default for f in fields(options) if f.name not in ELSEWHERE}
    theirs = {name: f.default for name, f in section.model_fields.items()}
    assert ours == theirs
