"""How many collectives this process took part in, and with how many bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Calls of torch.distributed by objectives and optimizers.

    Attributes:
        collectives: how many.
        bytes: that this rank gave to them, or got of another one's broadcast; what a backend sends for them depends on
            its algorithm and on the number of ranks.
    """

    collectives: int = 0
    bytes: int = 0

    def __sub__(self, before: "Traffic") -> "Traffic":
        """What there was since."""
        return Traffic(self.collectives - before.collectives, self.bytes - before.bytes)


_so_far = Traffic()


def traffic() -> Traffic:
    """All of this process so far, over all groups of ranks: take the difference of two."""
    return _so_far


def note(size: int) -> None:
    """Count one collective with so many bytes."""
    global _so_far
    _so_far = Traffic(_so_far.collectives + 1, _so_far.bytes + size)
