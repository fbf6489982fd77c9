"""Tokens and webhook URLs at rest: sealed with CDC_SECRET_KEY, opened only to send."""

from __future__ import annotations

from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from cdc_tasks.errors import CDCError
from cdc_tasks.settings import worker_settings

__all__ = ["VaultError", "new_key", "open_sealed", "reseal", "seal"]


class VaultError(CDCError):
    """A secret cannot be sealed or opened."""


def new_key() -> str:
    """Return a fresh key for CDC_SECRET_KEY."""
    return Fernet.generate_key().decode()


def seal(secret: SecretStr) -> str:
    """Encrypt with the first key."""
    return _keys().encrypt(secret.get_secret_value().encode()).decode()


def open_sealed(sealed: str) -> SecretStr:
    """Decrypt with whichever key fits; raises VaultError."""
    try:
        return SecretStr(_keys().decrypt(sealed.encode()).decode())
    except InvalidToken:
        raise _wrong_key() from None


def reseal(sealed: str) -> str:
    """Encrypt anew with the first key what any of the keys opens; raises VaultError."""
    try:
        return _keys().rotate(sealed.encode()).decode()
    except InvalidToken:
        raise _wrong_key() from None


@cache
def _keys() -> MultiFernet:
    secret = worker_settings().cdc_secret_key
    if secret is None:
        raise VaultError(
            "CDC_SECRET_KEY is not set, and without it no connected account can be read or added.",
            hint='export CDC_SECRET_KEY="$(python -m cdc_tasks new-key)"   # once; keep it',
        )
    return MultiFernet([Fernet(key.strip()) for key in secret.get_secret_value().split(",")])


def _wrong_key() -> VaultError:
    return VaultError(
        "No key in CDC_SECRET_KEY opens this account's secret.",
        hint="put the key it was sealed with back, behind the new one and a comma, and then: "
        "python -m cdc_tasks rotate-key",
    )
