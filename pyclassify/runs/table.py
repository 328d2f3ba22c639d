"""Tables for a terminal, as wide as it is."""

from collections.abc import Iterator, Sequence

GAP = "  "
NARROWEST_COLUMN, WIDEST_NAME = 12, 32


def table(
    rows: dict[str, list[str]], headings: Sequence[str], width: int, whole: bool = False
) -> str:
    """Set rows in columns, and in blocks one below the other where the columns are too many.

    Args:
        rows: Name and cells.
        headings: One for each column.
        width: How many characters a line may have.
        whole: Cells must not be cut.
    """
    first = min(max(map(len, rows)), WIDEST_NAME)
    room = width - len(GAP) - first
    share = max(NARROWEST_COLUMN, room // len(headings) - len(GAP))
    cells = [row if whole else _tell_apart(row, share) for row in rows.values()]
    widths = [
        max(min(len(heading), share), *map(len, column))
        for heading, column in zip(headings, zip(*cells, strict=True), strict=True)
    ]
    blocks = []
    for start, end in _blocks(widths, room):
        lines = []
        for name, row in [("", headings), *zip(rows, cells, strict=True)]:
            columns = zip(row[start:end], widths[start:end], strict=True)
            line = "".join(f"{GAP}{cut(cell, w):{w}}" for cell, w in columns)
            lines.append(f"{GAP}{cut(name, first):{first}}{line}".rstrip() + "\n")
        blocks.append("".join(lines))
    return "\n".join(blocks)


def cut(text: str, width: int) -> str:
    """Leave out the middle of a text that is too long."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _tell_apart(values: Sequence[str], width: int) -> list[str]:
    """Cut values to a width, where they begin alike rather than where they differ."""
    short = [cut(each, width) for each in values]
    if len(set(short)) == len(set(values)):
        return short
    alike = next(
        (i for i, letters in enumerate(zip(*values, strict=False)) if len(set(letters)) > 1),
        min(map(len, values)),
    )
    return [end if len(end := f"…{v[alike:]}") <= width else f"{end[: width - 1]}…" for v in values]


def _blocks(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    start, used = 0, 0
    for end, each in enumerate(widths):
        if end > start and used + len(GAP) + each > room:
            yield start, end
            start, used = end, 0
        used += len(GAP) + each
    yield start, len(widths)
