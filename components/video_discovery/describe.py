"""Prompt, drive and vehicle of a video.

Looked for in this order, field by field: sidecar ``.json``, sidecar ``.txt`` (prompt only), the
folders of the guides' layout (``videos/`` beside ``instructions/`` or ``metas/``), the user's
table, the path itself (``drive=…``, ``vehicle-…``), and for the prompt the one given for all.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from components.lib.contract import UserError
from components.video_discovery.candidates import Candidate
from components.video_discovery.entries import VideoSource, readable

PROMPT_KEYS = ("prompt", "caption", "text", "language_instruction_0")
FILE_KEYS = ("file", "video", "path", "uri", "name", "file_name")
DRIVE_KEYS = ("drive", "drive_id", "trip", "session")
VEHICLE_KEYS = ("vehicle", "vehicle_id", "robot", "vin")
_LAYOUT_FOLDERS = (("instructions", ".json"), ("metas", ".txt"))


@dataclass(frozen=True, slots=True)
class Description:
    """What is said about a video; empty text where nothing is."""

    prompt: str = ""
    drive: str = ""
    vehicle: str = ""

    def filled_from(self, other: Description) -> Description:
        """This, with its empty fields taken from ``other``."""
        missing = {
            field.name: getattr(other, field.name)
            for field in fields(self)
            if not getattr(self, field.name)
        }
        return replace(self, **missing)


class Describer:
    """Describes the videos of one source."""

    def __init__(
        self, source: VideoSource, pattern: str, prompt: str, table: dict[str, Description]
    ) -> None:
        self.source, self.prompt, self.table = source, prompt, table
        self.pattern = re.compile(pattern)

    def describe(self, candidate: Candidate) -> Description:
        """All that is known. Raises UserError naming a sidecar that cannot be read."""
        description = Description()
        for key in sorted(candidate.sidecars):  # .json before .txt
            description = description.filled_from(self._sidecar(key))
        key = candidate.entry.key
        for beside in self._layout_keys(key):
            data = None if description.prompt else self.source.read(beside)
            if data is not None:
                description = description.filled_from(_parse(beside, data))
        description = description.filled_from(self._from_table(key))
        description = description.filled_from(self._from_path(key))
        return description.filled_from(Description(prompt=self.prompt))

    def _sidecar(self, key: str) -> Description:
        data = self.source.read(key)
        return Description() if data is None else _parse(key, data)

    @staticmethod
    def _layout_keys(key: str) -> list[str]:
        folder, _, base = key.rpartition("/")
        parent, _, last = folder.rpartition("/")
        if last != "videos":
            return []
        stem = base.rsplit(".", 1)[0]
        above = f"{parent}/" if parent else ""
        return [f"{above}{name}/{stem}{suffix}" for name, suffix in _LAYOUT_FOLDERS]

    def _from_table(self, key: str) -> Description:
        """The table may name a video by its whole key or by any number of its last parts."""
        parts = key.split("/")
        for start in range(len(parts)):
            known = self.table.get("/".join(parts[start:]))
            if known is not None:
                return known
        return Description()

    def _from_path(self, key: str) -> Description:
        fields = {
            name: readable(value)
            for match in self.pattern.finditer(key)
            for name, value in match.groupdict().items()
            if value and name in ("drive", "vehicle")
        }
        return Description(**fields)


def fill_prompt(prompt: str, subject: str) -> str:
    """The prompt for all videos, with the subject in its place."""
    if "{subject}" not in prompt:
        return prompt
    if not subject:
        raise UserError(f"The prompt '{prompt}' names {{subject}}, but no subject is given.")
    return prompt.replace("{subject}", subject)


def read_table(data: bytes, name: str) -> dict[str, Description]:
    """A user's table (JSONL or CSV with a header) of file -> description.

    Raises UserError naming the line or the column that is missing.
    """
    text = _text(name, data)
    rows: list[dict[str, Any]] = []
    if name.lower().endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        # splitlines() would also split at what JSON allows inside a text, such as U+2028
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{name}, line {number} is not JSON: {error.msg}.") from error
            if not isinstance(row, dict):
                raise UserError(f"{name}, line {number} is not a JSON object.")
            rows.append(row)
    table: dict[str, Description] = {}
    for number, row in enumerate(rows, 1):
        file = _file(row)
        if not file:
            raise UserError(
                f"{name}, row {number} names no video. Give a column {', '.join(FILE_KEYS)}."
            )
        table[file.removeprefix("./")] = _description(row)
    return table


def _parse(key: str, data: bytes) -> Description:
    text = _text(key, data)
    if key.lower().endswith(".txt"):
        return Description(prompt=" ".join(text.split()))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{key} describes a video but is not JSON: {error.msg}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{key} describes a video but is not a JSON object.")
    return _description(value)


def _description(row: dict[str, Any]) -> Description:
    return Description(_first(row, PROMPT_KEYS), _first(row, DRIVE_KEYS), _first(row, VEHICLE_KEYS))


def _file(row: dict[str, Any]) -> str:
    """The name as it is: spaces of any kind may be part of it."""
    names = (row.get(name) for name in FILE_KEYS)
    return next((name for value in names if isinstance(value, str) and (name := value.strip())), "")


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and str(value).strip():
            line = " ".join(str(value).split())
            return line.encode("utf-8", "replace").decode()  # JSON can spell half a character
    return ""


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text. Save it as UTF-8.") from error
