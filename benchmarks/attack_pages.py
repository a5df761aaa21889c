"""Attacks by pages: cheap to ask for, as large as what is stored."""

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

from benchmarks.attack_prepare import CONVERSATION
from benchmarks.attacker import Attack, Attacker

if TYPE_CHECKING:
    import socket

PAGE = f"/api/conversations/{CONVERSATION}/messages?limit=200"
LIST = "/api/conversations?limit=200"
UNREAD_SECONDS = 8.0


def ask(attacker: Attacker, path: str, threads: int, times: int) -> None:
    """Ask for a page in several threads, several times each."""
    attacker.at_once(threads, lambda: attacker.ask("GET", path), times)


def walk(attacker: Attacker) -> None:
    """Read lists and histories to the end of the time."""
    paths = cycle((PAGE, LIST))
    attacker.for_seconds(6.0, 8, lambda _: attacker.ask("GET", next(paths)))


def unread(attacker: Attacker, count: int) -> None:
    """Ask for the largest page on each of some connections, and read none of it."""
    head = f"Host: 127.0.0.1:{attacker.port}\r\nAuthorization: Bearer {attacker.token}"
    request = f"GET {PAGE} HTTP/1.1\r\n{head}\r\n\r\n".encode()
    connections: list[socket.socket] = []
    for _ in range(count):
        connection = attacker.connect()
        attacker.send(connection, request)
        attacker.requests += 1
        connections.append(connection)
    time.sleep(UNREAD_SECONDS)
    for connection in connections:
        connection.close()


def _attack(name: str, run: Callable[[Attacker], object], says: str) -> Attack:
    return Attack(f"pages-{name}", run, says, kinds=("pages",), seconds=30.0)


ATTACKS = (
    _attack("three", partial(ask, path=PAGE, threads=3, times=1), "three readers of a page of 30 messages of 4 MB"),
    _attack("lists", partial(ask, path=LIST, threads=4, times=1), "four pages of 200 conversations of 1 MB metadata"),
    _attack("64", partial(ask, path=PAGE, threads=64, times=1), "64 readers of the largest page at the same time"),
    _attack(
        "64-lists", partial(ask, path=LIST, threads=64, times=1), "64 readers of the largest list at the same time"
    ),
    _attack("walk", walk, "eight readers of both, for 6 s"),
    _attack("unread", partial(unread, count=64), "64 connections that ask for it and do not read, for 8 s"),
)
