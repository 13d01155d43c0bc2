"""`python -m adapt`"""

from adapt.cli import main

main()
