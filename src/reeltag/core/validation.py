"""Pydantic's validation errors in the wording of all other messages, and checks that several tables share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator
from pydantic_core import ErrorDetails

from reeltag.core.text import did_you_mean

MAX_VALUE_LENGTH = 100  # characters of a wrong value
SUM_TOLERANCE = 1e-6

_MUSTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), lambda context: "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), lambda context: "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), lambda context: "must be true or false"),
    "string_type": lambda context: "must be text",
    "path_type": lambda context: "must be a path",
    "finite_number": lambda context: "must be finite",
    "greater_than": lambda context: f"must be more than {context['gt']:,.10g}",
    "greater_than_equal": lambda context: f"must be {context['ge']:,.10g} or more",
    "less_than": lambda context: f"must be less than {context['lt']:,.10g}",
    "less_than_equal": lambda context: f"must be {context['le']:,.10g} or less",
    "multiple_of": lambda context: f"must be a multiple of {context['multiple_of']:,.10g}",
    "too_short": lambda context: f"must have {context['min_length']:,} or more values",
    "too_long": lambda context: f"must have {context['max_length']:,} or fewer values",
    "literal_error": lambda context: f"must be {context['expected']}",
}


def describe_fault(fault: ErrorDetails) -> str:
    """Describe a validation error without its location, such as "must be a number, not 'abc'"."""
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind in ("missing", "extra_forbidden"):
        return "is missing" if kind == "missing" else "unknown key"
    if kind == "value_error":
        return fault["msg"].removeprefix("Value error, ")
    if kind == "tuple_type":
        return f"must be a list, such as [{format_value(given)}], not {format_value(given)}"
    if kind in ("model_type", "dict_type"):
        return f"must be a table, {{ key = value, … }}, not {format_value(given)}"
    must = _MUSTS[kind](context) if kind in _MUSTS else fault["msg"]
    if kind == "literal_error" and (question := did_you_mean(str(given), re.findall("'([^']*)'", context["expected"]))):
        return f"{must}, not {format_value(given)}; {question}"
    return must if kind == "finite_number" or isinstance(given, BaseModel) else f"{must}, not {format_value(given)}"


def count_or(word: str) -> BeforeValidator:
    """Return a validator that accepts a whole number of at least 1 or one word, with one message instead of two."""

    def check(value: object) -> object:
        if value != word and (type(value) is not int or value < 1):
            raise ValueError(f'must be a whole number, 1 or more, or "{word}", not {format_value(value)}')
        return value

    return BeforeValidator(check)


def sum_fault(weights: Iterable[float]) -> str:
    """Return a description if the weights of an ensemble's members do not sum to 1; empty if they do."""
    total = sum(weights)
    return "" if abs(total - 1) <= SUM_TOLERANCE else f"sum to {total:.10g}, not to 1; change them so that they do"


def format_value(given: object) -> str:
    """Format a value for a message, shortened if it is long."""
    if isinstance(given, Mapping):
        return "a table"
    text = repr(given)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"
