"""Writes the table of claims of reference results into a README.

    python -m resnet_bench.reporting.readme README.md reports/reference

The table stands between two comments, which the README must hold; what is between them is replaced.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_bench.base.errors import UserError
from resnet_bench.reporting import report, table
from resnet_bench.reporting.files import write_all
from resnet_bench.reporting.published import published
from resnet_bench.reporting.table import Source

BEGIN, END = "<!-- claims table: begin -->", "<!-- claims table: end -->"


def with_claims(readme: str, claims: str) -> str:
    """A README with another table of claims between its two comments.

    Raises:
        UserError: The comments are not there, once each and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end or BEGIN in old + after or END in before + after:
        raise UserError(f"the README must hold {BEGIN} and, behind it, {END}, once each")
    return f"{before}{begin}\n\n{claims.strip()}\n\n{end}{after}"


def update(readme: Path, sources: Sequence[Source]) -> None:
    """Make the table of claims of a README from stores or folders of report tables.

    Raises:
        UserError: No source can be read, or the README lacks the two comments.
    """
    try:
        text = readme.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror or error}") from None
    claims = report.render_claims(report.build(published(table.read(sources))))
    write_all(readme.parent, {readme.name: with_claims(text, claims).encode()})


if __name__ == "__main__":
    try:
        update(Path(sys.argv[1]), sys.argv[2:])
    except (UserError, IndexError) as problem:
        sys.exit(f"error: {problem}" if isinstance(problem, UserError) else __doc__)
