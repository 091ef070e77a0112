"""The type checker of the tests' import hook: beartype, for which an int is a float as for Python's own checkers."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
