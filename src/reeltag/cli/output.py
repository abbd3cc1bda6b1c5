"""Print results of commands: text for people, or with `--json` one JSON object for programs."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from reeltag.data.bad_records import BadRecords

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object instead of text.")]


def say(result: Mapping[str, Any], text: Iterable[str], json: bool) -> None:
    """Print a command's result on standard output.

    Args:
        result: the object that `--json` prints; paths become strings.
        text: lines that are printed without `--json`.
        json: True where `--json` was given.
    """
    if json:
        print(json_module.dumps(result, ensure_ascii=False, allow_nan=False, default=str))
    else:
        print("\n".join(text))


def say_left_out(bad: BadRecords) -> None:
    """List on standard error the bad records that were left out, and count what was forgiven in others, if any."""
    from reeltag.data.bad_records import format_remarks, summary

    if bad.records:
        print(summary(bad.records), file=sys.stderr)
    for line in format_remarks(bad.remarks):
        print(line, file=sys.stderr)
