"""The text of an OpenVPN profile as the client itself would read it: bytes to directives.

One state machine with the client's own rules (`parse_line`, `read_config_file` and
`read_inline_file` of OpenVPN 2.6 and 2.7), because whoever reads such a file in another way
sees other directives than the client does. Where its rules cut a line in pieces (256 bytes, a
NUL), the line is a flaw, and is still read as far as the client would, to say what it tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chainctl.spec.words import quote
from chainctl.spec.yaml_text import Flaw, Place

LONGEST_LINE = 254
"""Bytes without the line feed; of longer ones the client makes two."""
MOST_WORDS = 16
"""In a directive; the client does not look at those behind."""

_SEPARATORS = b" \t\n\v\f\r"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One physical line, without its line feed."""

    number: int
    content: bytes


@dataclass(frozen=True)
class Directive:
    place: Place
    name: str
    """Without the two dashes it may have; of an inline block the name between `<` and `>`."""
    words: tuple[str, ...]
    """What follows it, each byte one character."""
    block: tuple[Line, ...] | None = None
    """The lines of an inline block, None for an ordinary directive."""
    flaw: Flaw | None = None
    """Why the line cannot be trusted to be what it looks like."""
    opt: bool = False
    """Written `setenv opt NAME …`: the client passes over it when it does not know it."""


def parse_openvpn(content: bytes) -> tuple[list[Directive], list[Flaw]]:
    """Directives in the order of the file, and flaws that belong to none of them."""
    lines = [Line(number, line) for number, line in enumerate(content.split(b"\n"), start=1)]
    if lines[-1].content == b"":
        lines.pop()
    return parse_lines(lines)


def parse_lines(lines: list[Line] | tuple[Line, ...]) -> tuple[list[Directive], list[Flaw]]:
    """As `parse_openvpn`; for the lines of a `<connection>` block, which is read the same way."""
    reader = _Reader(iter(lines))
    reader.read()
    return reader.directives, reader.flaws


class _Reader:
    def __init__(self, lines: Iterator[Line]) -> None:
        self.lines = lines
        self.directives: list[Directive] = []
        self.flaws: list[Flaw] = []

    def read(self) -> None:
        for line in self.lines:
            content = line.content.removeprefix(_BOM) if line.number == 1 else line.content
            flaw = _flaw_of(line)
            # The client sees a C string, and of a long line the first piece.
            seen = content.partition(b"\0")[0][: LONGEST_LINE + 2]
            try:
                words, column = split_words(seen + b"\n")
            except ValueError as error:
                place = Place(line.number, _indent(content) + 1)
                self.flaws.append(flaw or Flaw(place, "C225", str(error)))
                continue
            if not words:
                if flaw:
                    self.flaws.append(flaw)
                continue
            self.add(words, Place(line.number, column), flaw)

    def add(self, words: list[str], place: Place, flaw: Flaw | None) -> None:
        name, *rest = words
        if name.startswith("--") and len(name) > 2:
            name = name[2:]
        if name.startswith("<") and name.endswith(">") and not rest:
            block = tuple(self.block(name[1:-1], place))
            self.directives.append(Directive(place, name[1:-1], (), block, flaw))
            return
        opt = name == "setenv" and rest[:1] == ["opt"] and len(rest) > 1
        if opt:
            name, *rest = rest[1:]
            name = name.removeprefix("--")
        self.directives.append(Directive(place, name, tuple(rest), None, flaw, opt))

    def block(self, name: str, place: Place) -> Iterator[Line]:
        closing = b"</" + name.encode("latin-1") + b">"
        for line in self.lines:
            flaw = _flaw_of(line)
            if flaw:
                self.flaws.append(flaw)
            # What the client takes for a line of its own: pieces of at most 255 bytes.
            pieces = _pieces(line.content, LONGEST_LINE + 1)
            closed = [piece for piece in pieces if piece.lstrip(_SEPARATORS).startswith(closing)]
            if not closed:
                yield line
                continue
            if not flaw and closed[0].strip(_SEPARATORS) != closing:
                end = line.content.index(closing) + len(closing) + 1
                words = f"text after the end of a block; {quote(name)} ends here"
                self.flaws.append(Flaw(Place(line.number, end), "C225", words))
            return
        words = f"the block {quote(f'<{name}>')} has no end; expected {quote(f'</{name}>')}"
        self.flaws.append(Flaw(place, "C226", words))


def _flaw_of(line: Line) -> Flaw | None:
    nul = line.content.find(b"\0")
    if nul >= 0:
        words = "a NUL character: the client would read this line in another way than you do"
        return Flaw(Place(line.number, nul + 1), "C215", words)
    if len(line.content) > LONGEST_LINE:
        words = f"a line of {len(line.content)} bytes; the client reads at most {LONGEST_LINE}"
        return Flaw(Place(line.number, LONGEST_LINE + 1), "C215", words)
    return None


def _pieces(content: bytes, length: int) -> list[bytes]:
    parts = [content[at : at + length] for at in range(0, len(content), length)]
    return [part.partition(b"\0")[0] for part in parts]


def _indent(content: bytes) -> int:
    return len(content) - len(content.lstrip(_SEPARATORS))


def split_words(line: bytes) -> tuple[list[str], int]:
    """The words of a line that ends with its line feed, and the column of the first.

    ValueError with the reason for a line that the client refuses.
    """
    words: list[str] = []
    word = bytearray()
    quoted: int | None = None
    inside = escaped = False
    column = 0
    for at, byte in enumerate(line + b"\0"):
        if byte == _BACKSLASH and not escaped and quoted != _SINGLE:
            escaped = True
            continue
        space = byte in _SEPARATORS or byte == 0
        out = ended = False
        if not inside:
            if not space:
                if byte in b";#":
                    break
                inside = True
                column = column or at + 1 - escaped
                if byte in (_DOUBLE, _SINGLE) and not escaped:
                    quoted = byte
                else:
                    out = True
        elif quoted is None:
            ended = space and not escaped
            out = not ended and byte != 0
        else:
            ended = byte == quoted and not (escaped and quoted == _DOUBLE)
            out = not ended and byte != 0
        if escaped and out and not (byte in (_BACKSLASH, _DOUBLE) or space):
            raise ValueError("a backslash before something that needs none; write two of them")
        escaped = False
        if out:
            word.append(byte)
        if ended:
            words.append(word.decode("latin-1"))
            word, quoted, inside = bytearray(), None, False
            if len(words) > MOST_WORDS:
                raise ValueError(f"more than {MOST_WORDS} words in one line")
    if inside:
        raise ValueError("a quotation mark that is not closed" if quoted else "no end of a word")
    return words, column or 1


_BACKSLASH, _DOUBLE, _SINGLE = b"\\\"'"
