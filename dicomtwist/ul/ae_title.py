"""AE titles: what is one (PS3.5 Table 6.2-1, PS3.8 9.3.2)."""

from __future__ import annotations


def check_ae_title(value: str | bytes, what: str = "AE title") -> str:
    """
    Return *value* as an AE title without its leading and trailing spaces, which are not significant (PS3.5 6.2).

    :param value: 1 to 16 characters of ASCII besides the spaces around them; ``bytes`` are taken too.
    :param what: what to call it in the error.
    :raises TypeError: it is neither ``str`` nor ``bytes``.
    :raises ValueError: it is empty or all spaces, too long, or has a backslash or a control character.
    """
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str or bytes, not {type(value).__name__}")
    title = value.strip(" ")
    if not title:
        raise ValueError(f"{what} {value!r} is empty or all spaces")
    if len(title) > 16:
        raise ValueError(f"{what} {value!r} has {len(title)} characters, 16 is the most")
    if not all(" " <= character <= "~" and character != "\\" for character in title):
        raise ValueError(f"{what} {value!r} has a character other than ASCII without control and backslash")
    return title


def is_ae_title(value: str) -> bool:
    """Whether *value*, from the wire, is an AE title."""
    try:
        check_ae_title(value)
    except ValueError:
        return False
    return True
