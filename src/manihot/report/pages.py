"""Every HTML page: one Jinja environment over `templates/`, one layout, one set of macros.

A page is a single file that opens offline, on a phone and on paper, and loads nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from manihot.report.words import count_of, duration, interval_text, number, percent, signed


def render(template: str, **values: Any) -> str:
    """The page of templates/TEMPLATE.html.j2; a name that the template needs and `values` lacks is an error."""
    return _environment().get_template(f"{template}.html.j2").render(values)


@cache
def _environment() -> Environment:
    jinja = Environment(
        loader=PackageLoader(__package__ or "manihot.report"),
        autoescape=True,  # names of files and classes come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(percent=percent, number=number, interval=interval_text, count=count_of, duration=duration)
    jinja.filters.update(points=lambda share: signed(share, 1, 100), nats=lambda value: signed(value, 3))
    return jinja
