"""A small good configuration, and what is wrong with another."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ConfigError

SECRET = "a long pass phrase"
ENV = dict.fromkeys(
    ("RPI_PDU_AUTH", "RPI_PDU_PRIV", "RPI_PDU_A_AUTH", "RPI_PDU_A_PRIV", "RPI_PDU_B_AUTH", "RPI_PDU_B_PRIV"), SECRET
)
# two outlets of a PDU on one breaker of 10 A and 2000 W, measured by one board; its keys are in the variable KEY
TWO_OUTLETS = """\
[[board]]
id = "b"
port = "/dev/ttyACM0"
channels = ["current:a/1", "current:a/2", "voltage:L1"]
[[pdu]]
id = "a"
profile = "raritan_px"
host = "192.0.2.1"
user = "u"
auth_key_env = "KEY"
priv_key_env = "KEY"
[[outlet]]
pdu = "a"
numbers = "1-2"
load = "n{n}"
rating_w = 2000.0
static_safe_w = 500.0
closed_loop = true
[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 10.0
rating_w = 2000.0
outlets = ["a/*"]
"""
BASE = """\
[rack]
id = "r"
[[board]]
id = "b"
port = "/dev/ttyACM0"
channels = ["current:a/1", "current:a/2", "voltage:L1"]
[[pdu]]
id = "a"
profile = "raritan_px"
host = "192.0.2.1"
user = "u"
auth_key_env = "RPI_PDU_AUTH"
priv_key_env = "RPI_PDU_PRIV"
[[outlet]]
pdu = "a"
numbers = "1-2"
load = "n{n}"
rating_w = 500.0
static_safe_w = 300.0
[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 16.0
outlets = ["a/*"]
"""


def parse(text: str, env: Mapping[str, str] = ENV, base_dir: Path = Path("/nowhere")) -> Config:
    return parse_config(text, "t.toml", base_dir=base_dir, env=env)


def mistakes(text: str, env: Mapping[str, str] = ENV, base_dir: Path = Path("/nowhere")) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, env, base_dir)
    return str(caught.value).splitlines()
