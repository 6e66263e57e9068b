"""A formula as text that is worked out as it is printed, so that what is shown is what was computed.

evaluate("devices * price * seconds / 3600", {"devices": 64, "price": 2.99, "seconds": 7200})
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "max": max}
_NAME = re.compile(r"[A-Za-z_]\w*")


def evaluate(text: str, numbers: Mapping[str, float]) -> float:
    """The value of a formula of names, numbers, + - * / **, brackets, ceil and max.

    Raises:
        ValueError: anything else in it, or a name without a number.
    """
    return float(_value(ast.parse(text, mode="eval").body, numbers))


def _value(node: ast.expr, numbers: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as constant):
            return constant
        case ast.Name(id=name) if name in numbers:
            return numbers[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, numbers), _value(right, numbers))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(one, numbers) for one in args))
    raise ValueError(f"{ast.unparse(node)!r} is not part of a formula")


def in_words(text: str) -> str:
    """A formula for people: `x` for times, `^` for powers, spaces in names."""
    return _signs(text.replace("_", " "))


def substituted(text: str, numbers: Mapping[str, float]) -> str:
    """A formula for people with its numbers put in, in base units and six digits."""
    return _signs(_NAME.sub(lambda found: _show(numbers[found[0]]) if found[0] in numbers else found[0], text))


def _signs(text: str) -> str:
    return text.replace("**", "^").replace("*", "x")


def _show(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.6g}"
