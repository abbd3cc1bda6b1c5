"""The message on a file that exceeds its byte budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reeltag.core.text import megabytes


def explain_over_budget(size: int, budget: int, overhead: int, sizes: Mapping[str, int], order: Sequence[str]) -> str:
    """Explain by how much a file exceeds its budget and which members would fit.

    Args:
        size: bytes of the file.
        budget: largest allowed size in bytes.
        overhead: bytes of everything but the weights.
        sizes: bytes of each member's weights.
        order: names of the members, in the order in which they are tried.
    """
    fitting, total = [], overhead
    for name in order:
        if total + sizes[name] <= budget:
            fitting.append(name)
            total += sizes[name]
    fit = f"{', '.join(fitting)} would fit ({megabytes(total)})" if fitting else "no single member would fit"
    listing = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    return (
        f"the file would have {megabytes(size)}, {megabytes(size - budget)} over the budget of {megabytes(budget)}; "
        f"members: {listing}; {fit}; leave members out, make them smaller, or raise budget_mb"
    )
