"""`adapt serve` with an adapter like the quickstart's: its overhead over the model itself, and 10,000 requests."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import adapt
from adapt.data.decoding.files import read_bytes
from adapt.models.many import SideBySide
from adapt.models.prediction import Prediction, Query
from benchmarks.drawings import SEEN, backbone, drawings
from benchmarks.measure import Row, by_turns

REQUESTS, CLIENTS, PASSES, TURNS, IMAGES = 10_000, 8, 300, 12, 64
CLOSE = 1e-4  # tolerance of probabilities, which differ a little between batch sizes


class Client:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(self, method: str, path: str, content: bytes = b"", kind: str = "application/json") -> tuple[int, Any]:
        self._connection.request(method, path, content, {"Content-Type": kind})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def predict(self, image: bytes) -> tuple[int, Any]:
        head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
        return self.ask("POST", "/predict", head + image + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time a server in its own process and the model itself by turns."""
    words = "a photo of a thing that is one of many kinds, which is called a"
    method = adapt.methods.CoOp(ctx_init=words)
    model = adapt.wrap(backbone().to("cpu"), method, drawings(SEEN).class_names).eval()
    images = [read_bytes(item.path) for item in drawings(SEEN).test[:IMAGES]]
    expected = model.predict(images)
    yield _passes(model, images[:CLIENTS])
    with tempfile.TemporaryDirectory() as folder:
        paths = [model.save(Path(folder) / f"{name}.safetensors") for name in ("one", "other")]
        with _serving(paths[0], folder) as (process, port):
            progress("one client, and the model itself")
            yield _alone(model, port, images)
            progress(f"{REQUESTS:,} requests")
            yield _many(process, port, images, expected)


def _passes(model: adapt.AdaptedModel, images: list[bytes]) -> Row:
    """Time passes of as many images as there are clients: no server can answer more a second on this machine."""
    together, query = SideBySide([model]), Query()
    started = time.perf_counter()
    pixels = [together.pixels(image) for image in images]
    decoding = 1000 * (time.perf_counter() - started) / len(images)
    [taken] = by_turns([lambda: list(together.predictions(pixels, query))], PASSES)
    rate = len(images) / taken
    return {
        "case": f"passes of {len(images)} images by the model alone",
        "a_second": rate,
        "decoding_ms": decoding,
        "text": f"{rate:.0f} images a second, each decoded in {decoding:.2f} ms before",
    }


def _alone(model: adapt.AdaptedModel, port: int, images: list[bytes]) -> Row:
    """Time the model and the server in turns of many requests, as each one's waiting threads slow the other's next."""
    client, own, served = Client(port), list[float](), list[float]()
    for _ in range(TURNS):
        own += _timed(model.predict, images)
        served += _timed(client.predict, images)
    direct, served_ms = (1000 * statistics.median(each) for each in (own, served))
    text = f"predict {direct:.1f} ms, served {served_ms:.1f} ms: {served_ms / direct:.2f} x"
    return {"case": "one client, median", "predict_ms": direct, "served_ms": served_ms, "text": text}


def _timed(answer: Callable[[bytes], object], images: list[bytes]) -> list[float]:
    """Return the seconds of each answer but the first ones, which find the caches cold."""
    seconds = []
    for image in images:
        started = time.perf_counter()
        answer(image)
        seconds.append(time.perf_counter() - started)
    return seconds[IMAGES // 8 :]


def _many(process: psutil.Process, port: int, images: list[bytes], expected: list[Prediction]) -> Row:
    """Send requests from several clients while adapters are loaded, switched and unloaded without a pause."""
    memory, seconds, wrong, done = [], list[float](), [0], threading.Event()
    each = REQUESTS // CLIENTS

    def ask(number: int) -> None:
        client = Client(port)
        for request in range(number, number + each):
            started = time.perf_counter()
            status, body = client.predict(images[request % IMAGES])
            seconds.append(time.perf_counter() - started)
            right = expected[request % IMAGES]
            answer = body["results"][0]["answers"][0] if status == 200 else None
            if not answer or answer["label"] != right.label or abs(answer["probability"] - right.probability) > CLOSE:
                wrong[0] += 1
            if len(seconds) in (REQUESTS // 5, REQUESTS):
                memory.append(process.memory_info().rss)

    switches = threading.Thread(target=lambda: switched.append(_switching(port, done)))
    switched: list[int] = []
    started = time.perf_counter()
    switches.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))
    took = time.perf_counter() - started
    done.set()
    switches.join()
    growth = (memory[-1] - memory[0]) / 2**20
    median = 1000 * statistics.median(seconds)
    return {
        "case": f"{len(seconds):,} requests of {CLIENTS} clients at once",
        "wrong": wrong[0],
        "switches": switched[0],
        "growth_mib": growth,
        "median_ms": median,
        "text": f"{wrong[0]} wrong, {switched[0]} switches, {len(seconds) / took:.0f} a second, median {median:.0f} "
        f"ms, memory {growth:+.1f} MiB from the first fifth to the end",
    }


def _switching(port: int, done: threading.Event) -> int:
    """Load the other adapter, make it the default, and go back, again and again; return how often."""
    client, count = Client(port), 0
    while not done.is_set():
        steps = [("POST", "/adapters", {"path": "other.safetensors"}), ("PUT", "/adapters/default", {"name": "other"})]
        steps += [("PUT", "/adapters/default", {"name": "one"}), ("DELETE", "/adapters/other", {})]
        for method, path, body in steps:
            status, answer = client.ask(method, path, json.dumps(body).encode())
            if status >= 300:
                raise RuntimeError(f"{method} {path}: {status} {answer}")
            done.wait(0.2)
        count += 1
    return count


@contextmanager
def _serving(adapter: Path, folder: str) -> Iterator[tuple[psutil.Process, int]]:
    """Yield a server's process and port; it decides itself how long its threads spin."""
    command = [sys.executable, "-m", "adapt", "serve", str(adapter), "--folder", folder, "--port", "0"]
    own = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield psutil.Process(process.pid), int(line.split(" (")[0].rpartition(":")[2])
        process.terminate()
