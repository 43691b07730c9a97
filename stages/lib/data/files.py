"""Files of text."""

from pathlib import Path

from stages.lib.params import Mistake

BOM = "\ufeff"  # a byte order mark, which is no part of a text


def read_text(file: Path, max_bytes: float = float("inf")) -> str:
    """Read a UTF-8 file whole; its size is looked at first."""
    if file.stat().st_size > max_bytes:
        raise Mistake(f"{file}: a document of more than {max_bytes:,} bytes; cut it in several files")
    try:
        return file.read_text(encoding="utf-8").replace(BOM, "")
    except UnicodeDecodeError as error:
        raise Mistake(f"{file}: not UTF-8: byte {error.start:,} is 0x{error.object[error.start]:02x}") from None
