"""How many there are of something, in this process and in the others of this Stor."""


class Count:
    """A count, where this process is the only one."""

    def __init__(self) -> None:
        self.mine = 0

    @property
    def total(self) -> int:
        """In all processes."""
        return self.mine
