"""Look, before anything is launched, whether a port can be served here; status 2 and a sentence where it cannot.

`port.py serve NAME HOST PORT` does so on the machine that HOST names, and on others nothing; NAME is the variable that
the port comes from. `port.py meet HOST:PORT` does it for a rendezvous, whose store the first torchrun of a machine
serves and its others join, and prints what torchrun has to be told of it.
"""

import ipaddress
import socket
import subprocess
import sys
from typing import NoReturn

JOIN = "import sys, torch.distributed as dist; dist.TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False)"
JOIN_S = 20
"""Seconds that a store has to answer in, the import of torch included: torch 2.13 waits for anything else forever."""


def addresses(host: str) -> list[str]:
    """What `host` stands for on this machine; nothing where it is not known."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def is_here(host: str) -> bool:
    """Whether `host` is this machine: only its own addresses can be bound."""
    for address in addresses(host):
        try:
            socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
        except OSError:
            continue
        return True
    return False


def is_free(port: int) -> bool:
    """Whether nobody listens on `port`, at any address of this machine."""
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        ).close()
    except OSError:
        return False
    return True


def number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        fail(f"{name}: {text or 'nothing'} is no port; give a number from 1024 to 65535")
    return int(text)


def require_free(name: str, port: int) -> None:
    if not is_free(port):
        what = "is in use on this machine, perhaps by another run" if port >= 1024 else "cannot be opened"
        fail(f"port {port} {what}; choose another one, from 1024 to 65535, with {name}")


def serve(name: str, host: str, text: str) -> None:
    port = number(name, text)
    if is_here(host):
        require_free(name, port)


def meet(endpoint: str) -> None:
    host, _, text = endpoint.rpartition(":")
    host = host.strip("[]")
    if not host:
        fail(f"RENDEZVOUS={endpoint} is no host:port; name one of the machines, as in RENDEZVOUS=node7:29500")
    port = number("RENDEZVOUS", text)
    if not addresses(host):
        fail(f"RENDEZVOUS={endpoint}: {host} is not known here; give a name or an address that all machines know")
    if not is_here(host):
        return
    if not is_free(port) and not joins(host, port):
        require_free("RENDEZVOUS", port)
    elif host != socket.gethostname() and not ipaddress.ip_address(addresses(host)[0]).is_loopback:
        # Torchrun knows this machine by its name and that name's address, and by no address of another network card.
        print(f"is_host={int(is_free(port))}")


def joins(host: str, port: int) -> bool:
    """Whether the store of another torchrun answers there."""
    command = [sys.executable, "-c", JOIN, host, str(port)]
    try:
        return not subprocess.run(command, capture_output=True, timeout=JOIN_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return False


def fail(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    {"serve": serve, "meet": meet}[sys.argv[1]](*sys.argv[2:])
