"""`adapt cache`"""

from __future__ import annotations

import click

from adapt.common.shown import shown


@click.command()
@click.option("--clear", is_flag=True, help="Delete all cached features, which are computed again when needed.")
def cache(clear: bool) -> None:
    """Show how much disk space the cached image features take, or clear them.

    Features are stored in $ADAPT_CACHE (default: ~/.cache/adapt/features) and take at most $ADAPT_CACHE_GIB GiB
    (default: 4). Beyond this limit, the least recently used features are deleted.
    """
    from adapt.cli.quiet import quiet_libraries

    with quiet_libraries():
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


COMMANDS = {"cache": cache}
