"""What drivers that speak HTTP share: how a certificate is known, what a failed handshake means, bounded answers."""

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rpi_daemon.errors import AuthError, DeviceError

if TYPE_CHECKING:
    import aiohttp


class TooLong(Exception):
    """An answer is longer than it may be."""


def client(
    label: str,
    extra: str,
    headers: Mapping[str, str],
    *,
    tls_ca_file: str | None,
    tls_fingerprint: str | None,
    allow_insecure: bool,
) -> "aiohttp.ClientSession":
    """One connection, no cookies, nothing unpacked. `extra` brings aiohttp. Raises DeviceError."""
    try:
        import aiohttp
    except ImportError as error:
        raise DeviceError(f"{label} needs aiohttp: install rpi-daemon[{extra}]") from error
    certificate = _verification(aiohttp, label, tls_ca_file, tls_fingerprint, allow_insecure)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1, ssl=certificate),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a small answer must not become a large one
        headers={**headers, "Accept-Encoding": "identity"},
    )


def _verification(
    aiohttp: Any, label: str, tls_ca_file: str | None, tls_fingerprint: str | None, allow_insecure: bool
) -> Any:
    """How a certificate is told to be the device's own, as aiohttp's `ssl` argument. Raises DeviceError."""
    if tls_fingerprint is not None:
        return aiohttp.Fingerprint(bytes.fromhex(tls_fingerprint.replace(":", "")))
    if allow_insecure:
        return False
    try:
        return ssl.create_default_context(cafile=tls_ca_file)
    except OSError as error:
        raise DeviceError(f"{label}: cannot use tls_ca_file {tls_ca_file}: {error}") from error


@contextlib.contextmanager
def request(label: str, tls_ca_file: str | None, timeout_s: float) -> Iterator[None]:
    """Around one request and its answer: raises AuthError for a wrong certificate, DeviceError for whatever else fails."""
    import aiohttp

    try:
        yield
    except TimeoutError as error:
        raise DeviceError(f"{label} did not answer within {timeout_s:g} s") from error
    except aiohttp.ServerFingerprintMismatch as error:
        raise AuthError(
            f"{label} shows another certificate than tls_fingerprint: SHA-256 {error.got.hex(':')}"
        ) from error
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        raise _tls_error(label, tls_ca_file, error) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise DeviceError(f"{label}: {printable(str(error)) or type(error).__name__}") from error


def _tls_error(label: str, tls_ca_file: str | None, error: Exception) -> DeviceError:
    """The sentence for a handshake that failed: AuthError for a certificate that does not pass."""
    reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        signed = f"tls_ca_file {tls_ca_file}" if tls_ca_file else "the system's authorities"
        return AuthError(
            f"{label}: the certificate does not pass {signed}: {reason.verify_message};"
            " for a self-signed one set tls_fingerprint"
        )
    return DeviceError(f"{label} does not speak TLS as it should: {printable(str(reason))}")


async def bounded(content: "aiohttp.StreamReader", most_bytes: int) -> bytes:
    """The whole body. Raises TooLong."""
    data = bytearray()
    async for piece in content.iter_any():
        data += piece
        if len(data) > most_bytes:
            raise TooLong(f"longer than {most_bytes} bytes")
    return bytes(data)


def printable(words: str, most: int = 200) -> str:
    """A device's own words, fit for one line of ours."""
    return "".join(c if c.isprintable() else " " for c in words)[:most].strip()
