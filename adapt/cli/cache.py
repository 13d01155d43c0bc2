"""`adapt cache`"""

from __future__ import annotations

from typing import Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import command
from adapt.common.shown import shown


@command()
def cache(
    *, clear: Annotated[bool, "Delete all cached features, which are computed again when needed."] = False
) -> None:
    """Show how much disk space the cached image features take, or clear them.

    Features are stored in $ADAPT_CACHE (default: ~/.cache/adapt/features) and take at most $ADAPT_CACHE_GIB GiB
    (default: 4). Beyond this limit, the least recently used features are deleted.
    """
    with common.quiet_libraries():
        from adapt.common.memory import readable_bytes
        from adapt.data.decoding.cache import FeatureCache

        store = FeatureCache()
        before = store.sizes()
        if clear:
            store.clear()
        total = sum(size for _, size in before.values())
        click.echo(f"{store.directory}: {readable_bytes(total)} of {readable_bytes(store.max_bytes)}")
        for name, (files, size) in before.items():
            click.echo(f"  {shown(name)}  {files:5} files  {readable_bytes(size):>10}")
        if clear:
            click.echo("cleared")
