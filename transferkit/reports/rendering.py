"""A report as one HTML page: style, script and thumbnails inline, no request, opens from disk."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import transferkit
from transferkit.reports.content import Report
from transferkit.reports.svg import SHAPES
from transferkit.reports.thumbnails import Thumbnails
from transferkit.runtime.files import atomic_path
from transferkit.runtime.page_files import check_page_place
from transferkit.runtime.text import for_terminal

TEMPLATES = "reports/templates"
KEPT = "\n\u200c\u200d"
"""Line ends of a configuration, and what joins the parts of an emoji or of a script's letters."""


def write_report(report: Report, thumbnails: Thumbnails, path: str | Path) -> None:
    """Write a report as HTML, whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    check_page_place(path)
    page = render(report, thumbnails)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(report: Report, thumbnails: Thumbnails) -> str:
    """Return the page."""
    script, style = inline("map.js"), inline("style.css")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            uris=thumbnails.uris,
            ids=thumbnails.ids,
            shapes=SHAPES,
            unread=thumbnails.unread,
            script=Markup(script),
            style=Markup(style),
            policy=policy(script),
            generator=f"transferkit {transferkit.__version__}",
        )
    )


def policy(script: str) -> str:
    """Return a content security policy under which nothing is requested and no script but ours runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = ("img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'")
    return "; ".join(("default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"))


@cache
def environment() -> Environment:
    """Return the templates; every text is escaped, and what a template does not get is an error."""
    made = Environment(
        loader=PackageLoader("transferkit", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["visible"] = visible
    return made


def inline(name: str) -> str:
    """Return a file beside the templates."""
    return files("transferkit").joinpath(TEMPLATES, name).read_text(encoding="utf-8").strip()


def visible(text: Any) -> str:
    """Return text whose control and direction marks are shown, not obeyed."""
    return for_terminal(str(text), KEPT)
