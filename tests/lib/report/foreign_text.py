"""Text that tries to become markup, and a reader that tells whether it did."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any

NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onclick='x'>&lt;i&gt;"
    "]]></style></title></svg><!--{{ 7 * 6 }}{% raw %}"
)


class Reader(HTMLParser):
    """What a browser makes of a page: its elements, its text, and what its scripts hold."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        # (element, names of its attributes) -> how often it occurs
        self.elements: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.comments = 0
        self.text: list[str] = []
        self.attributes: list[str] = []
        self.scripts: list[str] = []
        self._raw = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag, tuple(sorted(name for name, _ in attrs))] += 1
        self.attributes += [value for _, value in attrs if value is not None]
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts.append(data)
        elif not self._raw:
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments += 1

    def data(self) -> Any:
        """The JSON that the page's script reads."""
        return json.loads(self.scripts[0])


def check_inert(nasty: bytes, plain: bytes) -> Reader:
    """Both pages have the same elements, with the same attributes, so no text became markup."""
    hostile, harmless = Reader(nasty.decode()), Reader(plain.decode())
    assert hostile.elements == harmless.elements
    assert hostile.comments == 0
    # The script itself, which is the same on every page, comes after the data.
    assert hostile.scripts[1:] == harmless.scripts[1:] and len(hostile.scripts) == 2
    # A value that a template engine escaped twice, or evaluated, would not be found as it was.
    assert "{{ 7 * 6 }}" in "".join(hostile.text)
    assert "&amp;" not in "".join(hostile.text) and "&#" not in "".join(hostile.text)
    return hostile
