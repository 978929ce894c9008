"""Compare outputs whose rows are sorted or selected by scores, allowing for ties.

Detections and top-k are in the order of their scores. Scores that are equal up to rounding may come in either order,
and the last row may tie with one that wasn't selected. Rows are therefore matched by their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbranch.convert.prove.distance import Distance, Output, is_real, plain_distance
from unbranch.errors import InputError

_MOST_ROWS = 4096
_MANY_ROWS = 32  # so many rows aren't in order by chance
_MOST_COLUMNS = 512  # of a row, to find its partner; partners are compared completely


def distance(ours: Sequence[Output], theirs: Sequence[Output], tie: float, columns: bool = True) -> Distance:
    """Return the distance of outputs from those of another run; scores closer than ``tie``, relative, may be swapped.

    Scores may be one of several tensors, and with ``columns`` a column of a tensor.

    Raises:
        InputError: if shapes differ in more than the number of selected rows.
    """
    if len(ours) != len(theirs):
        raise _different(ours, theirs)
    total = Distance()
    for home in dict.fromkeys(o.home for o in theirs):
        pairs = [(o.value, t.value) for o, t in zip(ours, theirs, strict=True) if t.home == home]
        found = _one_container(pairs, tie, columns)
        if found is None:
            raise _different(ours, theirs)
        total |= found
    return total


def in_place(ours: Sequence[Output], theirs: Sequence[Output]) -> Distance | None:
    """Return the elementwise distance, without matching rows; None if shapes differ."""
    if [o.value.shape for o in ours] != [t.value.shape for t in theirs]:
        return None
    total = Distance()
    for o, t in zip(ours, theirs, strict=True):
        total |= plain_distance(o.value, t.value)
    return total


def _different(ours: Sequence[Output], theirs: Sequence[Output]) -> InputError:
    a, b = [tuple(o.value.shape) for o in theirs], [tuple(o.value.shape) for o in ours]
    return InputError(f"the two networks give outputs of different shapes: {a} and {b}")


def _one_container(pairs: list[tuple[Tensor, Tensor]], tie: float, columns: bool) -> Distance | None:
    """Return the distance of tensors in one tuple, list or dictionary; None if shapes are incomparable."""
    same_shapes = all(o.shape == t.shape for o, t in pairs)
    plain = Distance()
    if same_shapes:
        for o, t in pairs:
            plain |= plain_distance(o, t)
        if plain.relative <= tie:
            return plain
    parts = _selections(pairs, columns)
    selected = {place for part in parts for place in part.places}
    rest = [pair for place, pair in enumerate(pairs) if place not in selected]
    if any(o.shape != t.shape for o, t in rest):
        return None
    total = Distance()
    for part in parts:
        total |= part.distance(tie)
    for o, t in rest:
        total |= _chosen(o, t, pairs, tie) or plain_distance(o, t)
    return total


def _chosen(ours: Tensor, theirs: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], tie: float) -> Distance | None:
    """Compare indices of largest entries: a different index counts as equal if its entry is as large.

    The entries are another output, ``(..., C, ...)``, whose shape without one axis is that of the indices. Returns None
    if there is no such output.
    """
    if is_real(theirs) or theirs.numel() == 0 or theirs.dtype == torch.bool or ours.shape != theirs.shape:
        return None
    for _, scores in pairs:
        if not scores.is_floating_point():
            continue
        for axis, size in enumerate(scores.shape):
            if scores.shape[:axis] + scores.shape[axis + 1 :] != theirs.shape or int(ours.max()) >= size:
                continue
            slack = 2 * tie * float(scores.abs().max())
            most = scores.amax(axis)
            at_ours, at_theirs = (scores.gather(axis, i.long().unsqueeze(axis)).squeeze(axis) for i in (ours, theirs))
            if bool((most - at_theirs <= slack).all()) and bool((most - at_ours <= slack).all()):
                tied = int((ours != theirs).sum())
                return Distance(compared=theirs.numel() - tied, tied=tied)
    return None


@dataclass(frozen=True)
class _Selection:
    """Tensors ``(*batch, n, ...)`` whose n rows belong together, in descending order of ``scores``, ``(*batch, n)``.

    ``places`` are their positions in the container; ``cut`` says whether the last row may tie with one that wasn't
    selected.
    """

    pairs: list[tuple[Tensor, Tensor]]
    scores: tuple[Tensor, Tensor]
    places: list[int]
    cut: bool

    def distance(self, tie: float) -> Distance:
        """Return the distance of matched rows; scores closer than ``tie``, relative, may be swapped."""
        ours, theirs = ([_rows(p[side], s.dim()) for p in self.pairs] for side, s in enumerate(self.scores))
        scores = [s.reshape(s.shape[:-1].numel(), s.shape[-1]).double() for s in self.scores]
        scales = [max((float(v.abs().max()) for v in pair if v.numel()), default=0.0) or 1.0 for pair in self.pairs]
        slack = 2 * tie * max((float(s.abs().max()) for s in scores if s.numel()), default=0.0)
        common = min(s.shape[1] for s in scores)
        sorted_scores = plain_distance(*(s[:, :common] for s in scores))  # ties don't change these
        total = Distance(sorted_scores.relative, sorted_scores.absolute)
        for batch in range(scores[0].shape[0]):
            fields = [(o[batch], t[batch], scale) for o, t, scale in zip(ours, theirs, scales, strict=True)]
            total |= _matched(fields, scores[0][batch], scores[1][batch], tie, slack if self.cut else -slack)
        return total


def _rows(value: Tensor, axes: int) -> Tensor:
    """Reshape ``(*batch, n, *rest)`` to ``(batch, n, rest)``."""
    batch, n = value.shape[: axes - 1], value.shape[axes - 1]
    rest = value.shape[axes:].numel()
    return value.reshape(batch.numel(), n, rest)


def _matched(
    fields: Sequence[tuple[Tensor, Tensor, float]], ours: Tensor, theirs: Tensor, tie: float, slack: float
) -> Distance:
    """Match the rows of one image; an unmatched row has its distance from the nearest one, unless its score may tie."""
    width = sum(o.shape[1] for o, _, _ in fields)
    apart = torch.zeros(len(ours), len(theirs), dtype=torch.float64)
    for o, t, scale in fields:
        apart = torch.maximum(apart, _apart(o, t, scale))
    partners = _partners(apart, tie)
    total = Distance()
    if partners:
        mine, yours = (torch.tensor(side) for side in zip(*partners, strict=True))
        for o, t, scale in fields:
            found = plain_distance(o[mine.to(o.device)], t[yours.to(t.device)])
            relative = found.absolute / scale if is_real(t) else found.relative
            total |= Distance(relative, found.absolute, found.compared)
    largest, tied = max(scale for *_, scale in fields), [0, 0]
    for axis, scores in enumerate((ours, theirs)):
        known = {pair[axis] for pair in partners}
        for row in sorted(set(range(len(scores))) - known):
            if _may_tie(scores, row, abs(slack), cut=slack > 0):
                tied[axis] += width
            else:
                others = apart.select(axis, row)
                nearest = float(others.min()) if len(others) else float("inf")
                total |= Distance(max(nearest, 2 * tie), nearest * largest, width)
    return total | Distance(tied=max(tied))


def _apart(ours: Tensor, theirs: Tensor, scale: float) -> Tensor:
    """Return largest relative differences of rows, ``(n, rest)`` and ``(m, rest)`` to ``(n, m)``; 1 for integers."""
    step = max(1, ours.shape[1] // _MOST_COLUMNS)
    a, b = ours[:, ::step].double().cpu(), theirs[:, ::step].double().cpu()
    largest = torch.cdist(a, b, p=float("inf"))
    return torch.nan_to_num(largest / scale, nan=float("inf")) if is_real(theirs) else (largest > 0).double()


def _partners(apart: Tensor, tie: float) -> list[tuple[int, int]]:
    """Return pairs of rows within ``tie`` of each other: for each row, the nearest that is free."""
    free, found = apart.clone(), []
    for row in range(free.shape[0] if free.shape[1] else 0):
        nearest = int(free[row].argmin())
        if float(free[row, nearest]) <= tie:
            found.append((row, nearest))
            free[:, nearest] = float("inf")
    return found


def _may_tie(scores: Tensor, row: int, slack: float, *, cut: bool) -> bool:
    """Whether a row's score ties with another one of its list, or with the last one of a list that was cut."""
    if len(scores) < 2:
        return False
    gaps = (scores - scores[row]).abs()
    gaps[row] = float("inf")
    return bool(gaps.min() <= slack) or (cut and bool(scores[row] - scores.min() <= slack))


def _selections(pairs: Sequence[tuple[Tensor, Tensor]], columns: bool) -> list[_Selection]:
    """Return the outputs of a container that are rows in descending order of a score among them."""
    for scores in pairs:
        if _fall(*scores):
            places = [j for j, p in enumerate(pairs) if all(_begins(v, s) for v, s in zip(p, scores, strict=True))]
            same = [pairs[j] for j in places]
            if len(same) > 1:
                cut = scores[1].shape[-1] >= _MANY_ROWS or not all(is_real(t) for _, t in same)
                return [_Selection(same, scores, places, cut)]
    return [found for place, pair in enumerate(pairs) for found in _one_tensor(*pair, place)] if columns else []


def _one_tensor(ours: Tensor, theirs: Tensor, place: int) -> Iterator[_Selection]:
    """Yield the rows of one tensor, ``(*batch, n, c)``, if one of its columns is a score."""
    if ours.dim() < 2 or ours.dim() != theirs.dim() or ours.shape[-1] != theirs.shape[-1]:
        return
    for column in range(ours.shape[-1] if ours.shape[-1] <= _MOST_COLUMNS else 0):
        scores = ours[..., column], theirs[..., column]
        if min(s.shape[-1] for s in scores) > 1 and _fall(*scores):
            columns = [(ours[..., j : j + 1], theirs[..., j : j + 1]) for j in range(ours.shape[-1])]
            yield _Selection(columns, scores, [place], cut=theirs.shape[-2] >= _MANY_ROWS)
            return


def _fall(ours: Tensor, theirs: Tensor) -> bool:
    """Whether both are scores ``(*batch, n)``, in descending order in each list."""
    if not ours.is_floating_point() or not theirs.is_floating_point() or ours.dim() == 0:
        return False
    if ours.dim() != theirs.dim() or ours.shape[:-1] != theirs.shape[:-1]:
        return False
    if max(ours.shape[-1], theirs.shape[-1]) > _MOST_ROWS:
        return False
    return all(bool((s.diff(dim=-1) <= 0).all()) for s in (ours, theirs))


def _begins(value: Tensor, scores: Tensor) -> bool:
    return value.shape[: scores.dim()] == scores.shape
