"""The templates of the reports: whatever is filled in is escaped, and a missing value is an error.

Only `Markup`, which these functions return, goes into a page as it is. Everything else is text,
wherever it came from, so no caller can forget to escape; a number costs an escape that it did not
need, which is nothing beside the pictures of a page.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("components.lib.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The order of charts and lines is that of the report; NaN is no JSON.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def render(template: str, **values: Any) -> Markup:
    """A whole template with its values."""
    rendered = _environment().get_template(template).render(values)
    return Markup(rendered)  # noqa: S704 - the template has escaped every value


def part(name: str, **values: Any) -> Markup:
    """A macro of parts.html.j2 with its values."""
    macro = getattr(_environment().get_template("parts.html.j2").module, name)
    drawn: Markup = macro(**values)
    return drawn
