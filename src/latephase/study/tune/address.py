"""The address of a storage in messages: without its password."""

from collections.abc import Sequence
from urllib.parse import quote, quote_plus

from sqlalchemy import make_url

from ...records import without_passwords

SECRET = ("password", "passwd", "pwd", "sslpassword")
"""Parameters of an address that drivers take passwords from."""
SHORTEST = 4
"""Letters of a password below which it is not looked for by itself: it would be found in every word."""


def without_its_password(text: str, url: str) -> str:
    """A text without the password that the storage's URL holds, however a driver has quoted it.

    Args:
        text: what somebody said of it.
        url: of the storage; where it is none, it is left out as a whole.
    """
    if not url:
        return without_passwords(text)
    try:
        parts = make_url(url)
    except Exception:  # what is no URL may hold a password anywhere
        return without_passwords(text.replace(url, "(not shown: it is no URL, and may hold a password)"))
    secrets = {parts.password or "", *(value for key in SECRET for value in _values(parts.query.get(key)))}
    for secret in sorted((secret for secret in secrets if len(secret) >= SHORTEST), key=len, reverse=True):
        for form in (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]):
            text = text.replace(form, "***")
    return without_passwords(text)


def _values(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()
