"""What a failed connection says of certificates, however deep the driver has hidden it."""

from __future__ import annotations

import ssl

__all__ = ["bad_certificate"]


def bad_certificate(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the error that says what is wrong with the server's certificate, if that is why `error` came."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error
