"""A server while others send it the worst that they may: who else asks is answered, and it ends when it is told to."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest
from faults.worst_requests import AT_ONCE, WORST, Body, chat, form, picture

import adapt

pytestmark = pytest.mark.faults

SECONDS = 10  # that an attack lasts
MEMORY = 1536  # MiB of a server, at most
SMALL = "POST", "/predict", form(picture(256, mode="RGB"))
HEALTH = "GET", "/healthz", ("", b"")
CHAT = "POST", "/v1/chat/completions", chat(picture(64, mode="RGB"))
Request = tuple[str, str, Body]


@dataclass
class Served:
    """A server of its own process."""

    process: subprocess.Popen[str]
    port: int

    def ask(self, method: str, path: str, body: Body = ("", b"")) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body[1], {"Content-Type": body[0]})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def tell(self, content: bytes) -> int:
        """Send bytes and return the status of the first answer, or 0 if there is none."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(content)
            return int(connection.recv(65536)[9:12] or 0)

    def mebibytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def end(self) -> tuple[float, list[str]]:
        """How long it took to end after SIGTERM, and what it printed."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        _, printed = self.process.communicate(timeout=60)
        return time.monotonic() - started, printed.splitlines()


@dataclass
class Asked:
    """What another client met meanwhile."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    memory: float = 0.0
    """The most that the server had, in MiB."""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    words = adapt.data.load("emoji").class_names
    model = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.ZeroShot(), words)
    return model.save(tmp_path / "a.safetensors")


@pytest.fixture
def chatting(tmp_path: Path) -> Path:
    model = adapt.wrap(adapt.load_backbone("mini-vlm"), adapt.methods.LoRA(towers=("decoder",)))
    return model.save(tmp_path / "chat.safetensors")


@contextmanager
def serving(*adapters: Path, files: int | None = None) -> Iterator[Served]:
    line = [sys.executable, "-m", "adapt", "serve", *(f"{each.stem}={each}" for each in adapters), "--port", "0"]

    def limited() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2].split(" ")[0])
        try:
            yield Served(process, port)
        finally:
            process.kill()


def _send(send: Callable[[], int], clients: int, over: Event, told: Connection) -> None:
    got = Counter[int]()

    def run() -> None:
        while not over.is_set():
            with suppress(OSError, http.client.HTTPException):  # refused before all of it was sent, or the server ends
                got[send()] += 1

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.send(got)


@contextmanager
def attacked(send: Callable[[], int], clients: int) -> Iterator[Counter[int]]:
    """While `clients` send it again and again, each as soon as it was answered; afterwards the statuses that they got.

    They have a process of their own, so that what others measure does not wait for them.
    """
    forked, got = multiprocessing.get_context("fork"), Counter[int]()
    over, (told, telling) = forked.Event(), forked.Pipe(duplex=False)
    process = forked.Process(target=_send, args=(send, clients, over, telling))
    process.start()
    try:
        yield got
    finally:
        over.set()
        got.update(told.recv())
        process.join()


def watch(served: Served, seconds: float, requests: Sequence[Request]) -> Asked:
    """Another client, which sends small requests ten times a second."""
    asked, until = Asked(), time.monotonic() + seconds
    while time.monotonic() < until:
        for method, path, body in requests:
            started = time.monotonic()
            status, _ = served.ask(method, path, body)
            asked.seconds.append(time.monotonic() - started)
            asked.statuses[path, status] += 1
            asked.memory = max(asked.memory, served.mebibytes())
        time.sleep(0.1)
    return asked


def settled(served: Served) -> float:
    """The memory once what was given up has come to its end, for which there is a minute."""
    for _ in range(60):
        time.sleep(1)
        if psutil.Process(served.process.pid).cpu_percent(0.5) < 5:
            break
    return served.mebibytes()


def withstands(served: Served, what: str, send: Callable[[], int], clients: int, requests: Sequence[Request]) -> None:
    """Attack a server, and check what others meet, its memory, and its end."""
    for request in requests:
        served.ask(*request)
    before = served.mebibytes()
    with attacked(send, clients) as got:
        time.sleep(1)
        asked = watch(served, SECONDS, requests)
    after = settled(served)
    with attacked(send, clients):
        time.sleep(2)
        seconds, printed = served.end()
    p99 = statistics.quantiles(asked.seconds, n=100)[98]
    print(
        f"{what}, {clients} clients: {len(asked.seconds)} others, p99 {p99:.2f} s, {dict(asked.statuses)}; they got "
        f"{dict(got)}; {before:.0f}, {asked.memory:.0f}, {after:.0f} MiB; ended in {seconds:.1f} s, {printed[:3]}"
    )
    assert {status for _, status in asked.statuses} == {200}
    assert p99 < 2
    assert asked.memory < MEMORY
    assert after < before + 200
    assert seconds < 10
    assert len(printed) <= 3


@pytest.mark.parametrize("clients", [8, 50])
@pytest.mark.parametrize("kind", WORST)
def test_the_worst_requests_hold_nobody_else_up(adapter: Path, kind: str, clients: int) -> None:
    body = WORST[kind]()
    with serving(adapter) as served:
        withstands(served, kind, lambda: served.ask("POST", "/predict", body)[0], clients, (SMALL, HEALTH))


@pytest.mark.parametrize("clients", [8, 50])
@pytest.mark.parametrize("kind", AT_ONCE)
def test_what_comes_at_once_holds_nobody_else_up(adapter: Path, kind: str, clients: int) -> None:
    content = AT_ONCE[kind]()
    with serving(adapter) as served:
        withstands(served, kind, lambda: served.tell(content), clients, (SMALL, HEALTH))


@pytest.mark.parametrize("clients", [8, 50])
def test_large_pictures_hold_no_chat_up(adapter: Path, chatting: Path, clients: int) -> None:
    method, path, _ = CHAT
    body = chat(picture(7900, mode="RGB"))
    with serving(adapter, chatting) as served:
        withstands(served, "large chats", lambda: served.ask(method, path, body)[0], clients, (CHAT, SMALL, HEALTH))


def test_a_hundred_chats_shut_nobody_else_out(adapter: Path, chatting: Path) -> None:
    with serving(adapter, chatting) as served:
        withstands(served, "small chats", lambda: served.ask(*CHAT)[0], 100, (SMALL, HEALTH))


async def _slowly(port: int, began: bytes, piece: bytes, again: bool, closed: Counter[str]) -> None:
    """A client that sends a little now and then, and where it is closed comes `again`."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(began)
            with suppress(TimeoutError):
                while not reader.at_eof():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.wait_for(reader.read(4096), 2)
            writer.close()
        closed["closed"] += 1
        if not again:
            return


async def _while_slow(port: int, clients: list[tuple[bytes, bytes]], again: bool, look: Callable[[], None]) -> int:
    """How many of the slow clients the server has closed by the end of `look`."""
    closed = Counter[str]()
    tasks = [asyncio.create_task(_slowly(port, *each, again, closed)) for each in clients]
    await asyncio.sleep(3)
    await asyncio.to_thread(look)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return closed["closed"]


HALF = (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-A: b\r\n")


def test_a_thousand_slow_clients_under_few_files_keep_nobody_out(adapter: Path) -> None:
    with serving(adapter, files=256) as served:
        seconds = list[float]()

        def look() -> None:
            for _ in range(20):
                started = time.monotonic()
                assert served.ask(*SMALL)[0] == 200
                seconds.append(time.monotonic() - started)

        asyncio.run(_while_slow(served.port, [HALF] * 1000, True, look))
        print(f"1,000 slow clients, 256 files: the longest answer took {max(seconds):.2f} s")
        assert max(seconds) < 5
        ended, printed = served.end()
        assert ended < 10
        assert len(printed) <= 3


def test_slow_headers_and_bodies_come_to_an_end(adapter: Path) -> None:
    routes = ("POST /predict", "POST /adapters", "GET /healthz", "PUT /adapters/default", "DELETE /adapters/a")
    head = "{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    bodies = [(head.format(route).encode(), b" ") for route in routes] * 20
    with serving(adapter) as served:
        port = served.port

        def open_ones() -> int:
            return sum(each.status == "ESTABLISHED" for each in psutil.Process(served.process.pid).net_connections())

        assert asyncio.run(_while_slow(port, [HALF] * 1200 + bodies, False, lambda: time.sleep(38))) == 1300
        assert open_ones() == 0
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(HALF[0])
            silent.settimeout(30)
            answer = silent.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
            "detail": "no complete request arrived within 10 seconds"
        }
