"""Addresses: where a server listens, under which names it may be asked, and what it is reached by.

Owns: the bound on connections, and what is said when an address cannot be listened on. Does not know what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worldmodel.errors import ConfigError

if TYPE_CHECKING:
    from aiohttp import web

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
MAX_CONNECTIONS = 64


async def listen(server: web.Server, host: str, port: int) -> asyncio.Server:
    """Listen on an address, for `MAX_CONNECTIONS` at a time.

    Raises:
        ConfigError: the port is in use or may not be opened, or the host is no address of this machine.
    """

    def answer() -> asyncio.Protocol:
        return server() if len(server.connections) < MAX_CONNECTIONS else _Refusal()

    try:
        return await asyncio.get_running_loop().create_server(answer, host, port)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port} is in use on {host}: give another one, or 0 for any that is free"
            ) from error
        if number == errno.EACCES:
            raise ConfigError(f"--port {port} may not be opened by this user: give one from 1024 to 65535") from error
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host!r} cannot be listened on ({reason}): give an address of this machine, 127.0.0.1 for itself "
            "alone or 0.0.0.0 for all that reach it"
        ) from error


class _Refusal(asyncio.Protocol):
    """Closes a connection as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def is_loopback(name: str) -> bool:
    """Return whether a host name or address leads from this machine to itself."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """Return the name of a Host header, without its port; "" where it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def page_address(host: str, port: int, token: str | None) -> str:
    """Return the whole address of the page."""
    name = own_address() if host in ("0.0.0.0", "::") else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + ("" if token is None else f"?token={token}")


def own_address() -> str:
    """Return the address under which others most likely reach this machine."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a name for nobody (RFC 5737); nothing is sent, a way out is looked up
        return str(probe.getsockname()[0])
    return socket.gethostname()
