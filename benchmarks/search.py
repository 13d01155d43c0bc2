"""Exact search among 100,000 stored features of 512 values, on one core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from adapt.retrieval.index import Index, IndexHeader
from benchmarks.measure import Row

ENTRIES, SIZE, QUERIES = 100_000, 512, 50


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the median over many queries, one after the other, and whether the results match a full sort."""
    torch.set_num_threads(1)
    features = F.normalize(torch.randn(ENTRIES, SIZE), dim=-1)
    header = IndexHeader(kind="texts", backbone="", fingerprint="", reading="")
    index = Index(header, tuple(map(str, range(ENTRIES))), features)
    seconds, exact = [], True
    for query in F.normalize(torch.randn(QUERIES, 1, SIZE), dim=-1):
        started = time.perf_counter()
        _, places = index.nearest(query, 10)
        seconds.append(time.perf_counter() - started)
        exact &= torch.equal(places[0], (features @ query[0]).argsort(descending=True)[:10])
    milliseconds = 1000 * statistics.median(seconds)
    text = f"{milliseconds:.1f} ms a query, {'exact' if exact else 'NOT exact'}"
    yield {"case": f"{ENTRIES:,} features of {SIZE}", "milliseconds": milliseconds, "exact": exact, "text": text}
