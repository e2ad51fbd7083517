"""Which files of a repository or folder a role needs, and no others.

A published repository holds the same weights in several forms (a 7B one about 45 GB in all); only
one of them is fetched. The order of preference is the exact native file, then NeMo's, then
diffusers'.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from components.lib.contract import UserError
from components.lib.cosmos.families import Variant, family_named


def needed_files(
    paths: Iterable[str], role: str, where: str, variant: Variant = "auto"
) -> list[str]:
    """The paths (relative, ``/`` separated) to fetch, sorted.

    Raises UserError that says what the role needs and what is there.
    """
    paths = sorted(path for path in paths if not _hidden(path))
    family = family_named(role)
    forms = family.variants
    if variant != "auto" and variant not in forms:
        known = ", ".join(name for name in forms if name != "auto") or "auto only"
        raise UserError(
            f"A checkpoint of role '{role}' has no variant '{variant}'; it has {known}."
        )
    for name, alternatives in forms.items():
        if variant not in ("auto", name):
            continue
        for patterns in alternatives:
            if _whole(paths, patterns):
                return _take(paths, [*patterns, *family.optional])
    wanted = " or ".join(
        " + ".join(patterns)
        for name, alternatives in forms.items()
        for patterns in alternatives[:1]
        if variant in ("auto", name)
    )
    listing = ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")
    raise UserError(
        f"{where} has no checkpoint of role '{role}': it needs {wanted}, and it holds "
        f"{listing or 'no files'}."
    )


def _hidden(path: str) -> bool:
    return any(part in (".git", ".cache") for part in path.split("/"))


def _whole(paths: Sequence[str], patterns: Sequence[str]) -> bool:
    return all(any(_matches(path, pattern) for path in paths) for pattern in patterns)


def _take(paths: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [path for path in paths if any(_matches(path, pattern) for pattern in patterns)]


def _matches(path: str, pattern: str) -> bool:
    """As a shell would, except that only a trailing ``/*`` or a lone ``*`` enters folders."""
    if pattern == "*":
        return True
    if pattern.endswith("/*"):
        return path.startswith(pattern[:-1])
    return "/" not in path.removeprefix(_folder(pattern)) and fnmatch.fnmatchcase(path, pattern)


def _folder(pattern: str) -> str:
    return pattern[: pattern.rfind("/") + 1]
