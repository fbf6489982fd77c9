"""Tokens and webhook URLs at rest: encrypted with CDC_SECRET_KEY, decrypted only to send."""

from __future__ import annotations

from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from cdc_tasks.errors import CDCError
from cdc_tasks.settings import worker_settings

__all__ = ["SealedSecretError", "new_key", "open_sealed", "reseal", "seal"]


class SealedSecretError(CDCError):
    """A secret cannot be encrypted or decrypted."""

    code = "vault"


def new_key() -> str:
    """Return a new key for CDC_SECRET_KEY."""
    return Fernet.generate_key().decode()


def seal(secret: SecretStr) -> str:
    """Encrypt with the first key."""
    return _keys().encrypt(secret.get_secret_value().encode()).decode()


def open_sealed(sealed: str) -> SecretStr:
    """Decrypt with any of the keys; raises SealedSecretError."""
    try:
        return SecretStr(_keys().decrypt(sealed.encode()).decode())
    except InvalidToken:
        raise _wrong_key() from None


def reseal(sealed: str) -> str:
    """Decrypt with any of the keys and encrypt again with the first; raises SealedSecretError."""
    try:
        return _keys().rotate(sealed.encode()).decode()
    except InvalidToken:
        raise _wrong_key() from None


@cache
def _keys() -> MultiFernet:
    secret = worker_settings().cdc_secret_key
    if secret is None:
        raise SealedSecretError(
            "CDC_SECRET_KEY is not set: without it connected accounts cannot be read or added.",
            hint='export CDC_SECRET_KEY="$(python -m cdc_tasks new-key)"   # once; keep it',
        )
    return MultiFernet([Fernet(key.strip()) for key in secret.get_secret_value().split(",")])


def _wrong_key() -> SealedSecretError:
    return SealedSecretError(
        "No key in CDC_SECRET_KEY decrypts this account's secret.",
        hint="add the key that encrypted it, after the new one and a comma, and then run: "
        "python -m cdc_tasks rotate-key",
    )
