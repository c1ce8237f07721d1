"""Why there are no figures."""


class Missing(Exception):
    """A program that bench needs is not installed; the text says which package has it."""


class Failed(Exception):
    """Something did not start, or did not answer as it should: a figure would be worth nothing."""
