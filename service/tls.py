"""TLS: the certificate that a server shows, taken from its files again when they are renewed."""

from __future__ import annotations

import ssl

from service.errors import SettingUnusable
from service.renewal import Renewal
from service.settings import Settings


class Certificate:
    """What every connection is encrypted with. TLS 1.2 and later, ciphers and all else as Python's `ssl` advises.

    Args:
        settings: with `tls_cert`.

    Attributes:
        context: of new connections; stays the same when the certificate is renewed.
        renewal: reads the files again.

    Raises:
        SettingUnusable: a file cannot be read, or certificate and key do not belong together.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.tls_cert is not None  # noqa: S101
        self._cert, self._key = settings.tls_cert, settings.tls_key or settings.tls_cert
        self._password_file = settings.tls_key_password_file
        self.context = _context()
        files = {self._cert, self._key, *([self._password_file] if self._password_file else [])}
        self.renewal = Renewal("TLS certificate", sorted(files), self._read)

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """The certificate of a server; None of one without TLS."""
        return cls(settings) if settings.tls_cert is not None else None

    def _read(self) -> None:
        """Tried on another context first: one that fails half-way would be left with a certificate and no key."""
        self._load(_context())
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # A password is always given: without one, OpenSSL would ask for it on the terminal.
            context.load_cert_chain(self._cert, self._key, self._password())
        except ssl.SSLError as error:
            why = "cannot be used: one of them is broken, or the key needs another password"
            if error.reason == "KEY_VALUES_MISMATCH":
                why = "do not belong together"
            raise self._unusable(why) from None
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise self._unusable(f"cannot be used: {error}") from None

    def _unusable(self, why: str) -> SettingUnusable:
        return SettingUnusable("GRIDLOOP_TLS_CERT", f"certificate {self._cert.name} and key {self._key.name} {why}")

    def _password(self) -> str:
        if self._password_file is None:
            return ""
        try:
            return self._password_file.read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingUnusable(
                "GRIDLOOP_TLS_KEY_PASSWORD_FILE", f"{self._password_file.name} cannot be read: {reason}"
            ) from None


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
