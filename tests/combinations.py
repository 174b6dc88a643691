"""Choices in which any two options of different axes meet at least once."""

from itertools import combinations, product


def pairwise(axes: dict[str, list[str]]) -> list[dict[str, str]]:
    """Rows with one option of each axis, found greedily."""
    axes = dict(sorted(axes.items(), key=lambda axis: -len(axis[1])))
    missing = {
        frozenset({(a, x), (b, y)}) for (a, xs), (b, ys) in combinations(axes.items(), 2) for x, y in product(xs, ys)
    }
    rows = []
    while missing:
        # From the axes with the most options: their pairs alone need as many rows.
        row = dict(max(map(sorted, missing), key=lambda pair: ([len(axes[axis]) for axis, _ in pair], pair)))
        for axis in [axis for axis in axes if axis not in row]:
            row[axis] = max(
                axes[axis],
                key=lambda option: sum(frozenset({(axis, option), chosen}) in missing for chosen in row.items()),
            )
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        rows.append(row)
    return rows
