"""Model versions and the production pointer, in object storage.

``<root>/<model>/versions/<n>/`` holds a version: the weights under ``model/``, ``model_card.md``,
``metrics.json``, ``lineage.json``, and last of all ``manifest.json``, a checkpoint manifest that
training and evaluation read like any other. A number is taken by creating ``claim.json``; a claim
whose upload was interrupted is taken up again by the next promotion of the same weights.

``<root>/<model>/production/<k>.json`` are the pointer's states, numbered from 1 and never
changed. The state with the largest number is in force. Moving the pointer is creating number k + 1
with a create-only put, so of several movers that saw state k exactly one succeeds, and a reader
sees the old or the new state and nothing between. The trade-off: finding the state in force is one
listing, and the history grows by one small object per change; it is also the audit log.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.manifest import MANIFEST_NAME, Manifest, load_manifest
from components.lib.store import ObjectStore
from components.lib.store.errors import ObjectExists

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,99}$")
_STATE = re.compile(r"/production/(\d{8})\.json$")


class PointerMoved(UserError):
    """Another promotion or rollback moved the pointer first."""


class Claim(Frozen):
    """Whose version number this is: the digest of the weights."""

    digest: str


class Pointer(Frozen):
    """One state of the production pointer.

    ``version`` is in production since this state, ``replaced`` was before (0: nothing). ``address``
    is that of the promotion that made the state, empty for a rollback.
    """

    number: int
    version: int
    digest: str
    kind: Literal["promotion", "rollback"]
    replaced: int = 0
    forced: bool = False
    reason: str = ""
    address: str = ""
    at: str = ""


def models_root(storage_root: str) -> str:
    """Where models are kept when nothing else is said: beside the stages' outputs."""
    return storage_root.rstrip("/") + "/models"


def check_name(model: str) -> str:
    """The name of a model. Raises UserError when it could not be a folder's name."""
    if not _NAME.match(model):
        raise UserError(
            f"'{model}' cannot be the name of a model. Use lower-case letters, digits, '.', '_' "
            "and '-', such as cosmos-diffusion-7b."
        )
    return model


def parse_model(text: str) -> tuple[str, int | None]:
    """``name@3`` -> (name, 3); ``name`` -> (name, None)."""
    name, _, number = text.partition("@")
    if number and not number.isdigit():
        raise UserError(f"'{text}' names no version. Write MODEL@N, such as cosmos-7b@3.")
    return check_name(name), int(number) if number else None


class Registry:
    """The versions and the pointer of one model."""

    def __init__(self, store: ObjectStore, root: str, model: str) -> None:
        self.store, self.model = store, check_name(model)
        self.uri = f"{root.rstrip('/')}/{model}/"

    def version_uri(self, version: int) -> str:
        """Prefix of a version's files, with a slash at its end."""
        return f"{self.uri}versions/{version}/"

    def history(self) -> list[Pointer]:
        """Every state of the pointer, oldest first."""
        return [self._state(uri) for uri in self._states()]

    def production(self) -> Pointer | None:
        """The state in force; None before the first promotion."""
        states = self._states()
        return self._state(states[-1]) if states else None

    def _states(self) -> list[str]:
        states = {
            int(match[1]): info.uri
            for info in self.store.list(self.uri + "production/")
            if (match := _STATE.search(info.uri))
        }
        return [states[number] for number in sorted(states)]

    def _state(self, uri: str) -> Pointer:
        try:
            return Pointer.model_validate_json(self.store.get_bytes(uri))
        except ValidationError as error:
            raise UserError(
                f"{uri} is no state of a production pointer. Somebody wrote there by hand; move "
                "the object elsewhere."
            ) from error

    def versions(self) -> list[int]:
        """Numbers of the complete versions, ascending."""
        numbers = []
        for info in self.store.list(self.uri + "versions/"):
            number, _, rest = info.uri[len(self.uri + "versions/") :].partition("/")
            if rest == MANIFEST_NAME and number.isdigit():
                numbers.append(int(number))
        return sorted(numbers)

    def load(self, version: int) -> Manifest:
        """A version's manifest. Raises UserError naming the versions there are."""
        uri = self.version_uri(version) + MANIFEST_NAME
        if self.store.stat(uri) is None:
            there = ", ".join(f"{self.model}@{number}" for number in self.versions()) or "none"
            raise UserError(f"There is no {self.model}@{version} (there are: {there}).")
        return load_manifest(uri, self.store)

    def claim(self, digest: str) -> int:
        """The version number of these weights, a new one unless they have one already."""
        number = 0
        for number, claimed in self._claims():
            if claimed == digest:
                return number
        while True:
            number += 1
            uri = self.version_uri(number) + "claim.json"
            try:
                data = Claim(digest=digest).model_dump_json().encode()
                self.store.put_bytes(uri, data, if_absent=True)
            except ObjectExists:
                if self._claimed_by(uri) == digest:
                    return number
                continue
            return number

    def _claims(self) -> list[tuple[int, str]]:
        claims = []
        for info in self.store.list(self.uri + "versions/"):
            number, _, rest = info.uri[len(self.uri + "versions/") :].partition("/")
            if rest == "claim.json" and number.isdigit():
                claims.append((int(number), self._claimed_by(info.uri)))
        return sorted(claims)

    def _claimed_by(self, uri: str) -> str:
        return Claim.model_validate_json(self.store.get_bytes(uri)).digest

    def move(
        self,
        seen: Pointer | None,
        version: int,
        *,
        kind: Literal["promotion", "rollback"],
        digest: str,
        forced: bool = False,
        reason: str = "",
        address: str = "",
    ) -> Pointer:
        """Put ``version`` in production, provided that ``seen`` is still the state in force.

        Raises PointerMoved when it is not, and UserError when the version is not complete.
        """
        self.load(version)
        pointer = Pointer(
            number=(seen.number if seen else 0) + 1,
            version=version,
            digest=digest,
            kind=kind,
            replaced=seen.version if seen else 0,
            forced=forced,
            reason=reason,
            address=address,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        uri = f"{self.uri}production/{pointer.number:08d}.json"
        try:
            self.store.put_bytes(uri, pointer.model_dump_json(indent=1).encode(), if_absent=True)
        except ObjectExists as error:
            raise PointerMoved(
                f"The production pointer of {self.model} was moved by somebody else at the same "
                "time; nothing was changed. Look at what is in production now and try again."
            ) from error
        return pointer


def rollback(registry: Registry, to: int | None, reason: str) -> Pointer:
    """Put an earlier version in production again: ``to``, or the one before the present one.

    Raises UserError when there is none, PointerMoved when somebody else was faster.
    """
    states = registry.history()
    if not states:
        raise UserError(f"Nothing of {registry.model} is in production, nothing to roll back.")
    if not reason.strip():
        raise UserError("A rollback needs a reason (--reason), for those who read the history.")
    current = states[-1]
    target = to if to is not None else previous_version(states)
    if not target:
        raise UserError(
            f"{registry.model}@{current.version} is the first in production. Name the version to "
            "go to with --to."
        )
    if target == current.version:
        raise UserError(f"{registry.model}@{target} is in production already.")
    digest = str(registry.load(target).summary.get("digest", ""))
    return registry.move(current, target, kind="rollback", digest=digest, reason=reason)


def previous_version(states: list[Pointer]) -> int:
    """The version that the one in force replaced when it was promoted; 0 when none.

    After a rollback the version to go back to is the one before the present version first came
    in, not the one that was just rolled back.
    """
    current = states[-1].version
    for state in reversed(states):
        if state.version == current and state.kind == "promotion":
            return state.replaced
    return 0


def rolled_back(states: list[Pointer]) -> set[str]:
    """Digests of weights that were rolled back and not promoted again since."""
    digests: dict[int, str] = {state.version: state.digest for state in states}
    out: set[str] = set()
    for state in states:
        if state.kind == "rollback" and state.replaced in digests:
            out.add(digests[state.replaced])
        out.discard(state.digest)
    return out
