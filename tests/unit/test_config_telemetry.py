"""[[telemetry]]: every mistake is one sentence with its key."""

from pathlib import Path

import pytest
from config_examples import BASE, ENV, mistakes, parse

HTTPS = 'load = "n1"\nurl = "https://192.0.2.40:9100/metrics"\n'
HTTP = 'load = "n1"\nurl = "http://192.0.2.40:9100/metrics"\n'
PLAIN = "plain HTTP: others on the network can read it"


def telemetry(*sections: str) -> str:
    return BASE + "".join(f"[[telemetry]]\n{section}" for section in sections)


@pytest.mark.parametrize(
    "section",
    [
        HTTPS,
        HTTP + "allow_insecure = true\n",
        HTTPS + 'user = "u"\npassword_env = "RPI_PDU_AUTH"\npoll_s = 5.0\ntimeout_s = 0.5\nnetwork_mbit_s = 1000.0\n',
        HTTPS + 'token_env = "RPI_PDU_AUTH"\n',
        HTTPS + "allow_insecure = true\n",
        'load = "n1"\nurl = "https://[2001:db8::1]:9100/metrics?collect[]=cpu"\n',
        'load = "n1"\ndriver = "feed"\npoll_s = 2.0\n',
    ],
)
def test_good_sections(section: str) -> None:
    assert parse(telemetry(section)).telemetry[0].load == "n1"


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ('load = "n3"\ndriver = "feed"\n', "telemetry[1].load: no outlet feeds a load called 'n3'; known: n1, n2"),
        ('load = "n1"\n', "telemetry[1]: needs url for driver 'node_exporter'"),
        (HTTP, f"telemetry[1].url: {PLAIN}"),
        (HTTP.replace("http:", "ftp:"), "telemetry[1].url: 'ftp://192.0.2.40:9100/metrics' is not an address such as"),
        ('load = "n1"\nurl = "web-1:9100"\n', "is not an address such as"),
        ('load = "n1"\nurl = "https://web-1:99999/"\n', "is not an address such as"),
        ('load = "n1"\nurl = "https://[::1/"\n', "is not an address such as"),
        ('load = "n1"\nurl = "https://u:p@web-1/metrics"\n', "telemetry[1].url: holds a user name or password"),
        (HTTPS + 'user = "u"\n', "telemetry[1].password_file: give one of password_file and password_env"),
        (HTTPS + 'password_env = "RPI_PDU_AUTH"\n', "telemetry[1].user: is needed with a password"),
        (HTTPS + 'user = "u"\npassword_env = "NOPE"\n', "environment variable NOPE is not set"),
        (HTTPS + 'user = "u"\ntoken_env = "RPI_PDU_AUTH"\n', "telemetry[1].token_env: give a token, or user and password"),
        (HTTPS + 'tls_ca_file = "ca.pem"\n', "telemetry[1].tls_ca_file: /nowhere/ca.pem: no such file"),
        (HTTPS + f'tls_fingerprint = "{"00" * 32}"\nallow_insecure = true\n', "each is another way to know the host's certificate"),
        (HTTP + f'tls_fingerprint = "{"00" * 32}"\nallow_insecure = true\n', "plain HTTP has no certificate"),
        (HTTPS + "poll_s = 0.5\n", "telemetry[1].poll_s: 0.5"),
        (HTTPS + "pol_s = 1.0\n", "unknown key; did you mean 'poll_s'?"),
        ('load = "n1"\ndriver = "feed"\nurl = "https://h/"\n', "telemetry[1].url: is for driver 'node_exporter'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(section: str, sentence: str) -> None:
    found = mistakes(telemetry(section))
    assert len(found) == 1, found
    assert sentence in found[0]


def test_a_load_has_one_host_and_a_host_one_load() -> None:
    found = mistakes(telemetry(HTTPS, HTTPS.replace("n1", "n2"), HTTPS.replace("192.0.2.40", "192.0.2.41")))
    assert "telemetry[2].url: telemetry 1 is at https://192.0.2.40:9100/metrics too" in found[0]
    assert "telemetry[3].load: load 'n1' has telemetry 1 already" in found[1]


def test_a_token_that_others_may_read_is_a_mistake(tmp_path: Path) -> None:
    token = tmp_path / "host.token"
    token.write_text("abc\n")
    text = telemetry(HTTPS + 'token_file = "host.token"\n')
    token.chmod(0o644)
    assert "chmod 0600" in mistakes(text, ENV, tmp_path)[0]
    token.chmod(0o600)
    config = parse(text, ENV, tmp_path)
    assert config.secret(config.telemetry[0], "token") == "abc"
