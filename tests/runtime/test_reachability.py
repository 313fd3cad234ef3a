"""Whether a machine can be reached is said at once."""

import socket
import time

import pytest

from transferkit.errors import UserError
from transferkit.runtime.reachability import require_network


def test_require_network_asks_the_host_or_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        require_network(f"http://127.0.0.1:{port}/x", "it", "remedy")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        require_network("https://elsewhere.test/x", "it", "remedy")
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"it: not in the local cache, and 127.0.0.1 cannot be reached; remedy"):
        require_network("https://elsewhere.test/x", "it", "remedy")
    assert time.perf_counter() - start < 3
