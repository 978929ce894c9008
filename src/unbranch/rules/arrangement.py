"""How the axes of a tensor are composed of those of an earlier one, after reshapes and transpositions.

``(B, N, C)`` flattened to rows has the axes ``(B·N, C)``: the first is composed of two axes, in that order. Reshapes
are analysed from shapes for inputs of two sizes, which distinguishes sizes that depend on the input from constants
that are equal by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unbranch.errors import NotAffineError

Size = tuple[int, int]  # for inputs of two sizes
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
ONE: Size = (1, 1)


@dataclass(frozen=True)
class Piece:
    """A factor of an axis.

    Args:
        axis: an axis of the earlier tensor.
        before: product of the slower factors of that axis.
        size: the factor.
    """

    axis: int
    before: Size
    size: Size


CHANNELS = Piece(-1, ONE, ONE)  # the axis of the channels, whose size varies between layers
Axis = tuple[Piece, ...]  # slowest first; empty for an axis of size 1


@dataclass(frozen=True)
class Arrangement:
    """The axes of a tensor as products of factors of an earlier tensor's axes.

    Args:
        axes: of the tensor.
        own: of the earlier tensor.
    """

    axes: tuple[Axis, ...]
    own: tuple[Axis, ...]

    @classmethod
    def of(cls, shapes: Shapes, channels: int | None = None) -> Arrangement:
        """Return the initial arrangement of a tensor, with the channels on the axis ``channels`` if given."""
        sizes = _pairs(shapes)
        axes: tuple[Axis, ...] = tuple(() if n == ONE else (Piece(j, ONE, n),) for j, n in enumerate(sizes))
        if channels is not None:
            axes = tuple((CHANNELS,) if j == channels else axis for j, axis in enumerate(axes))
        return cls(axes, axes)

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def is_own(self) -> bool:
        """Whether the axes are those of the earlier tensor."""
        return self.axes == self.own

    @property
    def channel_axis(self) -> int | None:
        """The axis that has the channels only, None if there is none."""
        return self.axes.index((CHANNELS,)) if (CHANNELS,) in self.axes else None

    def made_of(self, groups: Sequence[Sequence[int]]) -> Arrangement:
        """Return axes that are each composed of a group of the present axes, given by their positions."""
        return replace(self, axes=tuple(_joined([p for j in group for p in self.axes[j]]) for group in groups))

    def reshaped(self, start: int, stop: int, shapes: Shapes, channels: int) -> Arrangement:
        """Return the arrangement after a reshape of the axes from ``start`` to ``stop``, in memory order.

        Raises:
            NotAffineError: if the channels are divided, or the shapes are ambiguous.
        """
        pieces = [p for axis in self.axes[start:stop] for p in axis]
        if CHANNELS in pieces and (channels == 1 or any(_size(p, channels) == (channels,) * 2 for p in pieces
                                                        if p is not CHANNELS)):  # fmt: skip
            raise NotAffineError("a reshape of as many points as channels")
        axes = []
        for size in _pairs(shapes):
            axis, pieces = _taken(pieces, size, channels)
            axes.append(_joined(axis))
        if pieces:
            raise NotAffineError("a reshape to fewer numbers")
        return replace(self, axes=(*self.axes[:start], *axes, *self.axes[stop:]))

    def position_of(self, axis: int) -> int | None:
        """Return the axis of the earlier tensor that equals an axis, else None."""
        found = self.axes[axis]
        return self.own.index(found) if found and found in self.own else None


def _pairs(shapes: Shapes) -> list[Size]:
    a, b = shapes
    if len(a) != len(b):
        raise NotAffineError("a tensor whose rank depends on the input")
    return list(zip(a, b, strict=True))


def _size(piece: Piece, channels: int) -> Size:
    return (channels, channels) if piece == CHANNELS else piece.size


def _taken(pieces: list[Piece], size: Size, channels: int) -> tuple[list[Piece], list[Piece]]:
    """Return the first pieces, whose product is ``size``, and the remaining ones."""
    taken: list[Piece] = []
    left, missing = list(pieces), size
    while missing != ONE:
        if not left:
            raise NotAffineError("a reshape to more numbers")
        piece = left.pop(0)
        own = _size(piece, channels)
        if (rest := _divided(missing, own)) is not None:
            taken.append(piece)
            missing = rest
        elif piece != CHANNELS and (rest := _divided(own, missing)) is not None:
            taken.append(replace(piece, size=missing))
            before = (piece.before[0] * missing[0], piece.before[1] * missing[1])
            left.insert(0, Piece(piece.axis, before, rest))
            missing = ONE
        else:
            raise NotAffineError("a reshape that mixes channels with points, or points with images")
    return taken, left


def _divided(a: Size, b: Size) -> Size | None:
    whole = b[0] > 0 and b[1] > 0 and a[0] % b[0] == 0 and a[1] % b[1] == 0
    return (a[0] // b[0], a[1] // b[1]) if whole else None


def _joined(pieces: Sequence[Piece]) -> Axis:
    """Return the pieces with adjacent factors of one axis multiplied."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else CHANNELS
        after = (last.before[0] * last.size[0], last.before[1] * last.size[1])
        if piece != CHANNELS and piece.axis == last.axis and piece.before == after:
            found[-1] = replace(last, size=(last.size[0] * piece.size[0], last.size[1] * piece.size[1]))
        else:
            found.append(piece)
    return tuple(found)
