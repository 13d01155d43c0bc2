"""A step of `adapt train quickstart`, beside its matrix products alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from adapt import tasks
from adapt.methods.base import total
from adapt.recipe import read_recipe
from adapt.training.fitting import Fitting
from adapt.training.run_recipe import listed_data, plan_recipe
from benchmarks.measure import THREADS, Row, by_turns
from benchmarks.products import products_of

ROUNDS = 15


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Time the step, which reads features from the cache, and its products by turns in this process."""
    torch.set_num_threads(THREADS)
    recipe = read_recipe("quickstart")
    split = listed_data(recipe)
    plan = plan_recipe(recipe, split)
    model, training = plan.model, Fitting(plan)
    progress("the features of the images, where they are not in the cache")
    inputs, items = next(training.batches.epoch(0, 0))
    optimizer = torch.optim.SGD(model.method.trains(), lr=training.settings.lr)

    def step() -> None:
        optimizer.zero_grad()
        total(model.losses(tasks.of(items).step(model, items, inputs))[0]).backward()
        optimizer.step()

    products = products_of(step)
    taken, maps = by_turns([step, products.of_maps], ROUNDS, warming=2)
    limit = products.seconds(maps)
    yield {
        "case": f"{len(items)} images, {len(split.class_names)} classes",
        "seconds": taken,
        "limit_seconds": limit,
        "share_of_limit": limit / taken,
        "operators": products.operators,
        "text": f"{1000 * taken:.1f} ms; the products alone {1000 * limit:.1f} ms, {limit / taken:.2f} of the time; "
        f"{products.operators} operators",
    }
