"""AMD's own pseudo-code of gfx11 instructions, as tinygrad's tables carry it, executed: what the core is held against.

A value is a number with a kind ("f32", "u32", "b16", …); whole numbers do not wrap before they are stored, floats round
after each operation. What the grammar below does not know raises UnsupportedError: such a one is tested by hand.
"""

from __future__ import annotations

import importlib
import math
import re
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

TOKEN = re.compile(
    r"\s+|//[^\n]*|(?P<cast>\d+'[UIFB](?=\())|(?P<type>\d+'[UIFB](?![0-9a-fA-F]))|(?P<sized>\d+'(?:0x[0-9a-fA-F]+|\d+)[UF]?)|(?P<real>\d+\.\d+F?)|(?P<hex>0x[0-9a-fA-F]+)"
    r"(?:ULL|LL|U)?|(?P<int>\d+)(?:ULL|LL|U)?|(?P<name>[A-Za-z_]\w*)|(?P<op>\*\*|<<|>>|<=|>=|==|!=|<>|&&|\|\||\+=|-=|\+:|[-+*/%&|^~!<>=?:;,.(){}\[\]])"
)
LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!=", "<>"),
    ("<", "<=", ">", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
    ("**",),
)
BINDS = {op: n for n, ops in enumerate(LEVELS) for op in ops}
WORDS = {"f16": "<e", "f32": "<f", "f64": "<d"}


class UnsupportedError(Exception):
    """The pseudo-code says something that is not understood here."""


@dataclass(frozen=True)
class Num:
    """A number and its kind: f, u, i or b and its bits."""

    value: Any
    kind: str

    @property
    def size(self) -> int:
        return int(self.kind.lstrip("bfui") or 32)


def rounded(x: float, kind: str) -> float:
    """Round to a float format, nearest even."""
    if kind == "f64" or x != x or math.isinf(x):
        return x
    try:
        return float(struct.unpack(WORDS[kind], struct.pack(WORDS[kind], x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def bits(n: Num) -> int:
    """Return a number's bits."""
    if n.kind == "bf16":
        word = struct.unpack("<I", struct.pack("<f", n.value))[0]
        return word >> 16
    if n.kind[0] == "f":
        if n.value != n.value:
            return {"f16": 0x7E00, "f32": 0x7FC00000, "f64": 0x7FF8 << 48}[n.kind]
        return int.from_bytes(struct.pack(WORDS[n.kind], rounded(n.value, n.kind)), "little")
    return int(n.value) & (1 << n.size) - 1


def typed(word: int, kind: str) -> Num:
    """Read bits as a number of a kind."""
    if kind == "bf16":
        return Num(struct.unpack("<f", struct.pack("<I", (word & 0xFFFF) << 16))[0], "f32")
    size = int(kind.lstrip("bfui"))
    word &= (1 << size) - 1
    if kind[0] == "f":
        return Num(struct.unpack(WORDS[kind], word.to_bytes(size // 8, "little"))[0], kind)
    if kind[0] == "i" and word >> (size - 1):
        word -= 1 << size
    return Num(word, kind)


def _saturated(low: int, high: int, kind: str) -> Any:
    def run(x: Num) -> Num:
        v = x.value
        return Num(0 if v != v else low if v <= low else high if v >= high else math.trunc(v), kind)

    return run


def _exponent(x: Num) -> Num:
    return Num(
        bits(x) >> {"f32": 23, "f64": 52, "f16": 10}[x.kind] & {"f32": 255, "f64": 2047, "f16": 31}[x.kind], "i32"
    )


def _fma(a: Num, b: Num, c: Num) -> Num:
    from fractions import Fraction

    values = (a.value, b.value, c.value)
    if any(v != v or math.isinf(v) for v in values):
        return Num(a.value * b.value + c.value, a.kind)
    exact = Fraction(a.value) * Fraction(b.value) + Fraction(c.value)
    if exact == 0:
        return Num(a.value * b.value + c.value if a.value * b.value == 0 else 0.0, a.kind)
    return Num(from_fraction(exact, a.kind), a.kind)


def from_fraction(exact: Any, kind: str) -> float:
    """Round a fraction to a float format, once."""
    precision, least, top = {"f16": (11, -24, 16), "f32": (24, -149, 128), "f64": (53, -1074, 1024)}[kind]
    sign, value = (-1 if exact < 0 else 1), abs(exact)
    place = max(value.numerator.bit_length() - value.denominator.bit_length() - precision, least)
    scaled = value * 2**-place if place < 0 else value / 2**place
    while scaled >= 2**precision:
        place, scaled = place + 1, scaled / 2
    while place > least and scaled < 2 ** (precision - 1):
        place, scaled = place - 1, scaled * 2
    whole = round(scaled)
    return sign * math.inf if whole.bit_length() + place > top else sign * math.ldexp(whole, place)


def _divided(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b)
    return a / b


def _safe(fn: Any, x: float) -> float:
    try:
        return float(fn(x))
    except (ValueError, ZeroDivisionError):
        return math.nan
    except OverflowError:
        return math.inf


def _power(x: float, y: float) -> float:
    try:
        return float(x**y)
    except OverflowError:
        return math.inf


def _log2(x: float) -> float:
    return -math.inf if x == 0 else _safe(math.log2, x)


def _real(fn: Any) -> Any:
    return lambda x: Num(rounded(x.value if x.value != x.value else _safe(fn, x.value), x.kind), x.kind)


def _whole(fn: Any) -> Any:
    def run(x: float) -> float:
        return x if math.isinf(x) else math.copysign(float(fn(x)), x)

    return _real(run)


FUNCTIONS: dict[str, Any] = {
    "isNAN": lambda x: Num(int(x.value != x.value), "u1"),
    "sign": lambda x: Num(bits(x) >> x.size - 1, "u1"),
    "isQuietNAN": lambda x: Num(int(x.value != x.value), "u1"),
    "isSignalNAN": lambda x: Num(0, "u1"),
    "cvtToQuietNAN": lambda x: x,
    "abs": lambda x: Num(abs(x.value), x.kind),
    "exponent": _exponent,
    "fma": _fma,
    "floor": _whole(math.floor),
    "trunc": _whole(math.trunc),
    "ceil": _whole(math.ceil),
    "isEven": lambda x: Num(int(x.value % 2 == 0), "u1"),
    "sqrt": _real(math.sqrt),
    "log2": lambda x: Num(rounded(_log2(x.value), x.kind), x.kind),
    "pow": lambda x, y: Num(rounded(_power(x.value, y.value), y.kind), y.kind),
    "fract": _real(lambda v: v - math.floor(v)),
    "signext": lambda x: Num(x.value, "i64"),
    "signext_from_bit": lambda x, n: Num(
        ((x.value & (1 << n.value) - 1) ^ (1 << n.value >> 1)) - (1 << n.value >> 1) if n.value else 0, "i64"
    ),
    "ldexp": lambda x, n: Num(
        rounded(
            _safe(lambda v: math.ldexp(v, n.value), x.value)
            if x.value == x.value and not math.isinf(x.value)
            else x.value,
            x.kind,
        ),
        x.kind,
    ),
    "f32_to_i32": _saturated(-(2**31), 2**31 - 1, "i32"),
    "f32_to_u32": _saturated(0, 2**32 - 1, "u32"),
    "f64_to_i32": _saturated(-(2**31), 2**31 - 1, "i32"),
    "f64_to_u32": _saturated(0, 2**32 - 1, "u32"),
    "f16_to_i16": _saturated(-(2**15), 2**15 - 1, "i16"),
    "f16_to_u16": _saturated(0, 2**16 - 1, "u16"),
    "f32_to_u8": _saturated(0, 255, "u8"),
    "f32_to_i16": _saturated(-(2**15), 2**15 - 1, "i16"),
    "f32_to_u16": _saturated(0, 2**16 - 1, "u16"),
    **{
        f"{a}_to_{b}": (lambda x, b=b: Num(rounded(float(x.value), b), b))
        for a in ("f16", "f32", "f64", "i32", "u32", "i16", "u16")
        for b in ("f16", "f32", "f64")
        if a != b
    },
    **{f"{k}_to_{k[0]}32": (lambda x, k=k: Num(x.value, f"{k[0]}32")) for k in ("u8", "u4", "i8", "i4")},
    "bf16_to_f32": lambda x: Num(x.value, "f32"),
}


@cache
def tokens_of(text: str) -> list[tuple[str, str]]:
    """Cut pseudo-code into (kind, text) pairs."""
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise UnsupportedError(text[at : at + 20])
        at = match.end()
        if match.lastgroup:
            tokens.append((match.lastgroup, match[match.lastgroup]))
    return [*tokens, ("end", ""), ("end", "")]


class Run:
    """One execution of an instruction's pseudo-code in one lane."""

    def __init__(self, text: str, given: dict[str, Num]) -> None:
        self.tokens = tokens_of(text)
        self.at, self.live = 0, True
        self.names: dict[str, Any] = dict(given)
        while self.peek() != "":
            self.statement()

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1]

    def take(self, wanted: str | None = None) -> str:
        text = self.peek()
        if wanted is not None and text != wanted:
            raise UnsupportedError(f"{text!r} in place of {wanted!r}")
        self.at += 1
        return text

    # ---- statements ----
    def statement(self) -> None:
        word = self.peek()
        if word == ";":
            self.take()
        elif word == "if":
            self.branch()
        elif word == "for":
            self.loop()
        elif word == "declare":
            self.take()
            name = self.take()
            self.take(":")
            self.take()
            if self.peek() == "[":
                self.take()
                count = int(self.take())
                self.take("]")
                self.names.setdefault(name, [Num(0, "b64")] * count)
            else:
                self.names[name] = Num(0, "b64")
        elif self.tokens[self.at][0] != "name" or word in ("return", "lambda"):
            raise UnsupportedError(word)
        else:
            self.assignment()

    def branch(self) -> None:
        done, outer = False, self.live
        while True:
            word = self.take()
            if word == "endif":
                break
            if word in ("if", "elsif"):
                self.live = outer and not done
                chosen = bool(self.expression().value) if self.live else (self.skip_to("then") or False)
                self.take("then")
                self.live = outer and not done and chosen
                done = done or chosen
            else:
                self.live = outer and not done
            while self.peek() not in ("elsif", "else", "endif"):
                self.statement() if self.live else self.skip_statement()
        self.live = outer

    def skip_to(self, word: str) -> None:
        while self.peek() != word:
            self.take()

    def skip_statement(self) -> None:
        if self.peek() == "if":
            depth = 0
            while True:
                word = self.take()
                depth += (word == "if") - (word == "endif")
                if not depth:
                    return
        self.take()

    def loop(self) -> None:
        self.take("for")
        name = self.take()
        self.take("in")
        first = self.expression(no_ternary=True).value
        self.take(":")
        last = self.expression(no_ternary=True).value
        self.take("do")
        body = self.at
        for i in range(first, last + 1):
            self.at, self.names[name] = body, Num(i, "u32")
            while self.peek() != "endfor":
                self.statement()
        self.take("endfor")

    def assignment(self) -> None:
        name, path = self.take(), []
        while self.peek() in (".", "["):
            path.append(self.suffix())
        op = self.take()
        if op not in ("=", "+=", "-="):
            raise UnsupportedError(op)
        value = self.expression()
        if op != "=":
            old = self.follow(self.names[name], path)
            value = self.binary(op[0], old, value)
        self.store(name, path, value)

    def store(self, name: str, path: list[Any], value: Num) -> None:
        kinds = [p for p in path if isinstance(p, str)]
        spans = [p for p in path if not isinstance(p, str)]
        word = self.convert(value, kinds[-1]) if kinds else value
        if isinstance(self.names.get(name), list):
            cells = list(self.names[name])
            cells[spans[0][0]] = word
            self.names[name] = cells
            return
        if not spans:
            if name in ("SCC",):
                word = Num(int(bool(word.value)), "u1")
            self.names[name] = word if name not in ("D0", "VCC", "EXEC") or kinds else Num(bits(word), "b64")
            if name in ("D0",) and kinds:
                self.names[name] = Num(bits(word), "b64")
            return
        if len(spans) != 1:
            raise UnsupportedError("slices of slices")
        low, size = spans[0]
        old = bits(self.names.get(name, Num(0, "b64")))
        mask = (1 << size) - 1 << low
        self.names[name] = Num(old & ~mask | bits(word) << low & mask, "b64")

    # ---- expressions ----
    def convert(self, value: Num, kind: str) -> Num:
        if kind == "bf16":
            raise UnsupportedError("bf16 results")
        if kind[0] == "f" and value.kind[0] == "f":
            return Num(rounded(value.value, kind), kind)
        return typed(bits(value), kind)

    def suffix(self) -> Any:
        if self.take() == ".":
            return self.take()
        first = self.expression(no_ternary=True).value
        if self.peek() == ":":
            self.take()
            last = self.expression(no_ternary=True).value
            self.take("]")
            return (last, first - last + 1)
        if self.peek() == "+:":
            self.take()
            size = self.expression(no_ternary=True).value
            self.take("]")
            return (first, size)
        self.take("]")
        return (first, 1)

    def follow(self, value: Any, path: list[Any]) -> Num:
        for part in path:
            if isinstance(value, list):
                value = value[part[0]]
            elif isinstance(part, str):
                if not re.fullmatch(r"[bfui]f?\d+", part):
                    raise UnsupportedError(part)
                same = part[0] == "f" and value.kind[0] == "f"
                value = self.convert(value, part) if same else typed(bits(value), part)
            else:
                low, size = part
                value = Num(bits(Num(value.value, value.kind)) >> low & (1 << size) - 1, f"b{size}")
        return value

    def expression(self, no_ternary: bool = False) -> Num:
        value = self.level(0)
        if self.peek() == "?" and not no_ternary:
            self.take()
            one = self.expression()
            self.take(":")
            other = self.expression()
            return one if value.value else other
        return value

    def level(self, n: int) -> Num:
        """Read operators that bind at least as LEVELS[n] do, by precedence climbing."""
        value = self.unary()
        while (found := BINDS.get(self.peek(), -1)) >= n and self.tokens[self.at][0] == "op":
            op = self.take()
            value = self.binary(op, value, self.level(found + 1))
        return value

    def binary(self, op: str, a: Num, b: Num) -> Num:
        x, y = a.value, b.value
        if op in ("==", "!=", "<>", "<", "<=", ">", ">="):
            found = {
                "==": x == y,
                "!=": x != y,
                "<>": x < y or x > y,
                "<": x < y,
                "<=": x <= y,
                ">": x > y,
                ">=": x >= y,
            }[op]
            return Num(int(found), "u1")
        if op in ("||", "&&"):
            return Num(int(bool(x) or bool(y)) if op == "||" else int(bool(x) and bool(y)), "u1")
        floats = [n.kind for n in (a, b) if n.kind[0] == "f"]
        if floats:
            kind = max(floats, key=lambda k: int(k[1:]))
            with_op = {
                "+": lambda: x + y,
                "-": lambda: x - y,
                "*": lambda: x * y,
                "/": lambda: _divided(x, y),
                "**": lambda: _power(x, y),
            }
            if op not in with_op:
                raise UnsupportedError(op)
            try:
                return Num(rounded(float(with_op[op]()), kind), kind)
            except OverflowError:
                return Num(math.inf, kind)
        kind = a.kind if a.size >= b.size or op in ("<<", ">>") else b.kind
        if op in ("<<", ">>"):
            return Num(x << y if op == "<<" else x >> y, "i64" if x < 0 else "u64" if op == "<<" else kind)
        done = {
            "+": lambda: x + y,
            "-": lambda: x - y,
            "*": lambda: x * y,
            "&": lambda: x & y,
            "|": lambda: x | y,
            "^": lambda: x ^ y,
            "**": lambda: x**y,
        }
        if op not in done:
            raise UnsupportedError(op)
        value = done[op]()
        return Num(value, ("i" if value < 0 else kind[0]) + str(max(kind_size(kind), 32)))

    def unary(self) -> Num:
        word = self.peek()
        if word in ("-", "!", "~", "+"):
            self.take()
            x = self.unary()
            if word == "!":
                return Num(int(not x.value), "u1")
            return (
                x
                if word == "+"
                else Num(-x.value, x.kind if x.kind[0] == "f" else f"i{x.size}")
                if word == "-"
                else Num(~x.value, f"i{x.size}")
            )
        return self.primary()

    def primary(self) -> Num:
        kind, word = self.tokens[self.at]
        self.take()
        if kind == "cast":
            size, to = word.split("'")
            self.take("(")
            x = self.expression()
            self.take(")")
            return self.postfix(self.cast(x, to.lower() + size))
        if kind == "sized":
            size, number = word.split("'")
            return Num(int(number.rstrip("UF"), 0), f"u{size}")
        if kind == "real":
            return Num(float(word.rstrip("F")), "f32" if word.endswith("F") else "f64")
        if kind in ("hex", "int"):
            return Num(int(word, 0), "u32" if int(word, 0) < 1 << 32 else "u64")
        if word == "(":
            x = self.expression()
            self.take(")")
            return self.postfix(x)
        if word == "{":
            high = self.expression()
            self.take(",")
            low = self.expression()
            self.take("}")
            return self.postfix(Num(bits(high) << low.size | bits(low), f"b{high.size + low.size}"))
        if kind != "name":
            raise UnsupportedError(word)
        if self.peek() == "(":
            return self.postfix(self.call(word))
        named = {"INF": Num(math.inf, "f64"), "NAN": Num(math.nan, "f64"), "PI": Num(math.pi, "f64")}
        if word in named:
            return self.postfix(named[word])
        if word not in self.names:
            raise UnsupportedError(word)
        return self.postfix(self.names[word])

    def postfix(self, value: Num) -> Num:
        while self.peek() in (".", "["):
            value = self.follow(value, [self.suffix()])
        return value

    def cast(self, x: Num, kind: str) -> Num:
        if kind[0] == "f":
            return (
                Num(rounded(float(x.value), kind), kind)
                if x.kind[0] != "b" and not isinstance(x.value, bool)
                else typed(bits(x), kind)
            )
        if x.kind[0] == "f":
            raise UnsupportedError("a float as a whole number")
        return typed(int(x.value), kind)

    def call(self, name: str) -> Num:
        self.take("(")
        args = [self.expression()]
        while self.peek() == ",":
            self.take()
            args.append(self.expression())
        self.take(")")
        if name in FUNCTIONS:
            return FUNCTIONS[name](*args)
        text = by_name().get(name.upper())
        if text is None:
            raise UnsupportedError(name)
        kind = args[0].kind
        inner = Run(text, {f"S{i}": a for i, a in enumerate(args)} | {"D0": Num(0, "b64"), "VCC": Num(0, "b64")})
        return typed(bits(inner.names["D0"]), kind)


def kind_size(kind: str) -> int:
    return int(kind.lstrip("bfui") or 32)


@cache
def by_name() -> dict[str, str]:
    """Return the pseudo-code of each instruction by its name without the encoding's suffix."""
    table = importlib.import_module("tinygrad.runtime.autogen.amd.rdna3.str_pcode").PCODE
    return {re.sub(r"_E(32|64)$", "", op.name): text for op, text in table.items()}
