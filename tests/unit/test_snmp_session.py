"""Keys, options and secrets of the SNMP session; no wire."""

import pytest

from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession
from rpi_daemon.drivers.pdu.usm import localised_key, password_key
from rpi_daemon.errors import ConfigError


def test_key_localisation_vector_of_rfc_3414() -> None:
    """RFC 3414 A.3.2."""
    key = password_key("sha1", b"maplesyrup")
    assert key.hex() == "9fb5cc0381497b3793528939ff788d5d79145211"
    assert localised_key("sha1", key, bytes(11) + b"\x02").hex() == "6695febc9288e36282235fc7151f128497b38f3f"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"auth_key": "short77"}, "auth_key needs at least 8"),
        ({"priv_key": "short77"}, "priv_key needs at least 8"),
        ({"auth": None}, "no privacy without authentication"),
        ({"auth": "MD5"}, "auth 'MD5'"),
        ({"priv": "DES"}, "priv 'DES'"),
        ({"user": ""}, "user of 1 to 32"),
        ({"version": "1"}, "version '1'"),
        ({"version": "2c"}, "community"),
        ({"port": 0}, "port 0"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"retries": -1}, "retries"),
        ({"max_varbinds": 0}, "max_varbinds"),
        ({"host": ""}, "host is empty"),
    ],
)
def test_an_option_that_cannot_work_is_named(changes: dict[str, object], word: str) -> None:
    good: dict[str, object] = {"host": "pdu-a", "user": "rpi", "auth_key": "authpass12", "priv_key": "privpass12"}
    with pytest.raises(ConfigError, match=word):
        SnmpEndpoint(**(good | changes))  # type: ignore[arg-type]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SnmpEndpoint("pdu-a", port=0, user="", auth_key="x", priv_key="y")
    assert len(str(caught.value).splitlines()) == 4


def test_secrets_are_not_shown() -> None:
    endpoint = SnmpEndpoint("pdu-a", user="rpi", community="c0mmunity", auth_key="authpass12", priv_key="privpass12")
    shown = repr(endpoint) + repr(SnmpSession(endpoint)) + str(SnmpSession(endpoint))
    assert not any(secret in shown for secret in ("c0mmunity", "authpass12", "privpass12"))
    assert "pdu-a" in shown
