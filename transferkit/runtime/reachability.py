"""Whether another machine can be reached, without a long wait."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from transferkit.errors import UserError


def require_network(url: str, what: str, remedy: str) -> None:
    """Check within 2 s that the host of ``url`` (or the proxy for it) can be reached.

    Args:
        url: what is to be downloaded.
        what: what it is, for the message.
        remedy: what the user can do without a network.

    Raises:
        UserError: it cannot be reached.
    """
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy)
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname or "", port), timeout=2).close()
    except OSError as error:
        raise UserError(f"{what}: not in the local cache, and {target.hostname} cannot be reached; {remedy}") from error
