"""Reads text in UTF-8."""

import codecs
import pathlib

from train.formats.files import DataError, opened, room_for, unzipped


def read_text(file: pathlib.Path) -> str:
    """Reads a UTF-8 text file, plain or gzipped, with or without byte-order mark.

    Line ends become LF.
    Raises DataError naming the file; for UTF-16, it explains how to convert it.
    """
    return decoded(str(file), _text_bytes(file)).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: pathlib.Path) -> list[str]:
    """The lines of a text file, see ``read_text``.  A DataError also names the line."""
    return [
        decoded(f"{file}:{number}", line) for number, line in enumerate(read_byte_lines(file), 1)
    ]


def read_byte_lines(file: pathlib.Path) -> list[bytes]:
    """The lines of a text file, not decoded, so single lines may not be UTF-8.

    Lines end with LF or CRLF, or with CR in files without LF.  Other separators (CR, form feed,
    Unicode's) do not end a line; otherwise parallel files could differ in their numbers of lines.
    """
    raw = _text_bytes(file)
    end = b"\n" if b"\n" in raw else b"\r"
    return [line.removesuffix(b"\r") for line in raw.removesuffix(end).split(end)] if raw else []


def decoded(source: str, raw: bytes) -> str:
    """Decodes UTF-8, without a byte-order mark.  Raises DataError naming the source."""
    try:
        return _unmarked(source, raw).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text: {error}") from None


def _text_bytes(file: pathlib.Path) -> bytes:
    with opened(file) as raw:
        stream, room = unzipped(raw), room_for(raw)
        pieces = []
        while piece := stream.read(2**20):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise DataError(f"{file}: more than {room_for(raw)} bytes")
    return _unmarked(str(file), b"".join(pieces))


def _unmarked(source: str, raw: bytes) -> bytes:
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked or b"\0" in raw:
        what = "UTF-16" if marked else f"a NUL character after {raw.index(0)} bytes, as in UTF-16"
        raise DataError(
            f"{source}: {what}; expected text in UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        )
    return raw.removeprefix(codecs.BOM_UTF8)
