"""Listening sockets of a host and a port."""

import asyncio
import errno
import socket

from dairllm.mesh.errors import InvalidSetting

BACKLOG = 512


async def bind_all(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of a host, at one port. Raises InvalidSetting, with what was wrong."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidSetting(f"the HTTP host {host!r} cannot be resolved ({error}); expected an address of this machine") from error
    except OverflowError as error:
        raise InvalidSetting(f"the HTTP port is {port}; expected 0 to 65535") from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, sockaddr[0]) for family, _, _, _, sockaddr in found):
        actual_port = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bind_one(family, str(address), actual_port))
        except OSError as error:
            if sockets and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            for one in sockets:
                one.close()
            raise _bind_error(error, host, actual_port) from error
    return sockets


def _bind_one(family: int, address: str, port: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        one.bind((address, port))
        one.listen(BACKLOG)
        one.setblocking(False)
    except BaseException:
        one.close()
        raise
    return one


def _bind_error(error: OSError, host: str, port: int) -> InvalidSetting:
    match error.errno:
        case errno.EADDRINUSE:
            return InvalidSetting(f"the HTTP port {port} on {host} is in use; expected a free port, or 0 for any", "port")
        case errno.EACCES:
            return InvalidSetting(f"the HTTP port {port} on {host} is not allowed for this user; expected a port over 1023", "port")
        case _:
            return InvalidSetting(f"{host} port {port} cannot be bound for HTTP ({error.strerror}); expected an address of this machine")
