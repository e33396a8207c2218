"""From a machine address to the source line that it was compiled for: DWARF line tables, versions 4 and 5.

Format: DWARF Debugging Information Format, version 5, section 6.2. Compile with -gline-tables-only (or -g) to have one.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from pathlib import PurePosixPath

Section = dict[str, bytes]


class Reader:
    """A cursor over bytes."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def number(self, size: int, signed: bool = False) -> int:
        """Read a little-endian number of `size` bytes."""
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little", signed=signed)

    def uleb(self) -> int:
        """Read an unsigned number in base 128."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def sleb(self) -> int:
        """Read a signed number in base 128."""
        start = self.at
        value = self.uleb()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> (bits - 1) & 1 else value

    def text(self) -> str:
        """Read a string that ends with a zero byte."""
        end = self.data.index(b"\0", self.at)
        out = self.data[self.at : end].decode(errors="replace")
        self.at = end + 1
        return out


def line_table(sections: Section) -> Callable[[int], str]:
    """Return the function that gives "file:line" of an address, and "" where the object has no line table."""
    rows: list[tuple[int, str]] = []
    reader = Reader(sections.get(".debug_line", b""))
    try:
        while reader.at + 4 < len(reader.data):
            _unit(reader, sections, rows)
    except (IndexError, ValueError, struct.error):
        pass  # a damaged table loses lines, never a verdict
    rows.sort(key=lambda row: row[0])
    addresses = [address for address, _ in rows]

    def line_of(address: int) -> str:
        place = bisect_right(addresses, address) - 1
        return rows[place][1] if place >= 0 else ""

    return line_of


def _form(reader: Reader, form: int, sections: Section) -> str | int:
    if form == 0x08:
        return reader.text()
    if form in (0x0E, 0x1F):  # strp, line_strp
        return Reader(sections.get(".debug_str" if form == 0x0E else ".debug_line_str", b""), reader.number(4)).text()
    if form == 0x0F:
        return reader.uleb()
    if form == 0x1E:  # data16: a checksum
        reader.at += 16
        return 0
    return reader.number({0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8}[form])


def _names(reader: Reader, sections: Section) -> list[str]:
    formats = [(reader.uleb(), reader.uleb()) for _ in range(reader.number(1))]
    out = []
    for _ in range(reader.uleb()):
        values = {content: _form(reader, form, sections) for content, form in formats}
        out.append(str(values.get(1, "")))
    return out


def _unit(reader: Reader, sections: Section, rows: list[tuple[int, str]]) -> None:
    length = reader.number(4)
    end = reader.at + length
    version = reader.number(2)
    if version >= 5:
        reader.at += 2  # sizes of an address and of a segment selector
    program = reader.number(4)
    program += reader.at
    smallest = reader.number(1)
    reader.at += 2 if version >= 4 else 1  # operations per instruction, is_stmt at first
    base, span, first = reader.number(1, signed=True), reader.number(1), reader.number(1)
    operands = [reader.number(1) for _ in range(first - 1)]
    if version >= 5:
        _names(reader, sections)
        files = _names(reader, sections)
    else:
        while reader.text():
            pass
        files = [""]
        while name := reader.text():
            files.append(name)
            for _ in range(3):
                reader.uleb()
    reader.at = program
    _run(reader, end, files, (smallest, base, span, first, operands), rows)
    reader.at = end


def _run(
    reader: Reader,
    end: int,
    files: list[str],
    header: tuple[int, int, int, int, list[int]],
    rows: list[tuple[int, str]],
) -> None:
    smallest, base, span, first, operands = header
    address, file, line = 0, 1, 1

    def row() -> None:
        name = PurePosixPath(files[file]).name if file < len(files) else "?"
        rows.append((address, f"{name}:{line}" if line else ""))

    while reader.at < end:
        code = reader.number(1)
        if code >= first:
            step = code - first
            address, line = address + step // span * smallest, line + base + step % span
            row()
        elif code == 0:
            length = reader.uleb()
            after = reader.at + length
            what = reader.number(1)
            if what == 1:  # the end of a sequence
                rows.append((address, ""))
                address, file, line = 0, 1, 1
            elif what == 2:
                address = reader.number(length - 1)
            reader.at = after
        elif code == 1:
            row()
        elif code == 2:
            address += reader.uleb() * smallest
        elif code == 3:
            line += reader.sleb()
        elif code == 4:
            file = reader.uleb()
        elif code == 8:
            address += (255 - first) // span * smallest
        elif code == 9:
            address += reader.number(2)
        else:
            for _ in range(operands[code - 1]):
                reader.uleb()
