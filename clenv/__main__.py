"""``python -m clenv``."""

from clenv.cli import main

main()
