"""``python -m rayprompt``: the command line, from a checkout that is not installed."""

from rayprompt.cli.main import main

main()
