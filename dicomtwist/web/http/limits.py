"""
The limits on HTTP connections and requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["HTTPLimits"]

#: The longest request line and header together, in bytes. A search for 500 UIDs has 35 KB.
MAX_HEADER_LENGTH: Final = 64 * 1024
#: The most fields in a header. Browsers behind a proxy send about 30.
MAX_HEADER_FIELDS: Final = 100
#: The longest body of a request that is not streamed, in bytes.
MAX_BODY_LENGTH: Final = 1024 * 1024


@dataclass
class HTTPLimits:
    """
    The limits of a site.

    :ivar maximum_connections: the most connections at once; one more is closed at once.
    :ivar maximum_connections_per_peer: the most connections at once from one address; trusted proxies may have any number.
    :ivar maximum_body: the longest body of a request, in bytes; a longer one is refused with 413.
    :ivar header_timeout: the seconds in which the header of a request must arrive completely.
    :ivar idle_timeout: the seconds that a connection may be idle between two requests.
    :ivar body_timeout: the seconds in which a part of a body must arrive, see
        :data:`~dicomtwist.web.http.channel.MIN_PROGRESS`.
    :ivar write_timeout: the seconds in which a client must take some of the response.
    """

    maximum_connections: int = 2000
    maximum_connections_per_peer: int = 500
    maximum_body: int = 64 * 1024**3
    header_timeout: float | None = 30.0
    idle_timeout: float | None = 75.0
    body_timeout: float | None = 30.0
    write_timeout: float | None = 60.0
