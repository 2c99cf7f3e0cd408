"""The rules for AE titles (PS3.5 Table 6.2-1, PS3.8 9.3.2)."""

from __future__ import annotations


def check_ae_title(value: str | bytes, what: str = "AE title") -> str:
    """
    Return *value* as an AE title without its leading and trailing spaces, which are not significant (PS3.5 6.2).

    :param value: 1 to 16 characters of ASCII, not counting the spaces around them, as ``str`` or ``bytes``.
    :param what: the name of the value in error texts.
    :raises TypeError: *value* is neither ``str`` nor ``bytes``.
    :raises ValueError: *value* is empty or all spaces, too long, or has a backslash or a control character.
    """
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str or bytes, not {type(value).__name__}")
    title = value.strip(" ")
    if not title:
        raise ValueError(f"{what} {value!r} is empty or all spaces")
    if len(title) > 16:
        raise ValueError(f"{what} {value!r} has {len(title)} characters, the maximum is 16")
    if not all(" " <= character <= "~" and character != "\\" for character in title):
        raise ValueError(f"{what} {value!r} has a backslash, a control character or a character that is not ASCII")
    return title


def is_ae_title(value: str) -> bool:
    """Whether *value*, received from a peer, is an AE title."""
    try:
        check_ae_title(value)
    except ValueError:
        return False
    return True
