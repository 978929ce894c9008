"""The cost of computing values."""

from __future__ import annotations

from dataclasses import dataclass

LAUNCH = 2.5e5  # one launch, in multiply-accumulates that take the same time: 5 µs at 50 GMAC/s
MOVED = 20.0  # one number read or written: 4 bytes at 10 GB/s


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates, stored numbers, launches, and numbers read or written."""

    macs: float = 0.0
    numel: float = 0.0
    launches: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs, self.numel + other.numel, self.launches + other.launches,
            self.moved + other.moved,
        )  # fmt: skip

    def within(self, limit: Cost) -> bool:
        """Return whether arithmetic, stored numbers and launches don't exceed a limit."""
        slack = 1 + 1e-9
        return all(
            a <= b * slack
            for a, b in (
                (self.macs, limit.macs), (self.numel, limit.numel), (self.launches, limit.launches),
            )
        )  # fmt: skip

    def better_than(self, other: Cost) -> bool:
        """Return whether this has less arithmetic, or the same in less time."""
        slack = 1 - 1e-9
        as_much = self.macs * slack <= other.macs and other.macs * slack <= self.macs
        if as_much and (self.launches, self.numel) == (other.launches, other.numel):
            return False  # the same layer, named differently
        return self.time < other.time * slack if as_much else self.macs < other.macs

    @property
    def time(self) -> float:
        """Estimated time, in multiply-accumulates."""
        return self.macs + LAUNCH * self.launches + MOVED * self.moved
