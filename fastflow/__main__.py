"""`python -m fastflow` is the command `fastflow`."""

from fastflow.cli import command

command()
