"""A large JSON file, one entry after the other; the standard library would make objects of all of it at once."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError

_SPACE = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """Walks through a JSON text from its start.

    Args:
        path: The file.

    Raises:
        UserError: It is not JSON; so does every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes()
        try:
            self.text = content.decode(json.detect_encoding(content), "surrogatepass")
        except UnicodeDecodeError as error:
            raise self._error(error) from None
        self.position = 0
        self._decode = json.JSONDecoder().raw_decode
        self._skip_space()

    def starts(self, symbol: str) -> bool:
        """Whether the next value starts with `symbol`."""
        return self.text.startswith(symbol, self.position)

    def value(self) -> Any:
        """The next value."""
        try:
            value, self.position = self._decode(self.text, self.position)
        except (ValueError, RecursionError) as error:
            raise self._error(error) from None
        return value

    def fields(self) -> Iterator[str]:
        """Keys of the object that is the whole text; the caller takes the value of each before the next key.

        A text that is something else has no keys.
        """
        if self.starts("{"):
            for _ in self._members("{", "}"):
                if not self.starts('"'):
                    raise self._error("Expecting a key")
                key = self.value()
                self._symbol(":")
                yield key
        else:
            self.value()
            self._skip_space()
        if self.position < len(self.text):
            raise self._error("Extra data")

    def items(self) -> Iterator[Any]:
        """Items of the list that comes next."""
        for _ in self._members("[", "]"):
            yield self.value()

    def _members(self, first: str, last: str) -> Iterator[None]:
        """Stops before each member of an object or a list."""
        self._symbol(first)
        if self.starts(last):
            self._symbol(last)
            return
        yield
        while self._symbol("," + last) == ",":
            yield

    def _symbol(self, expected: str) -> str:
        """Step over one of the characters in `expected`, and white space around it."""
        self._skip_space()
        symbol = self.text[self.position : self.position + 1]
        if not symbol or symbol not in expected:
            raise self._error(f"Expecting {' or '.join(map(repr, expected))}")
        self.position += 1
        self._skip_space()
        return symbol

    def _skip_space(self) -> None:
        self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]

    def _error(self, error: Exception | str) -> UserError:
        if isinstance(error, str):
            error = json.JSONDecodeError(error, self.text, self.position)
        return UserError(f"{self.path}: not JSON ({error})")
