"""The entry point of `python -m adapt`, which runs the command line."""

from adapt.cli import main

main()
