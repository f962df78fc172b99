"""One self-contained HTML page for an analysis: verdicts first, then sections of text, tables and figures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from matplotlib.figure import Figure

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; font-size: 13px }
.verdict { padding: .7rem 1.2rem; margin: .6rem 0; border-left: .5rem solid #2a7; background: #eefaf4 }
.verdict.failed { border-color: #c33; background: #fdf0f0 }
img { max-width: 100% }
p.note { color: #555 }
</style></head><body>
<h1>{{ title }}</h1>
{% for verdict in verdicts %}<p class="verdict{{ '' if verdict.passed else ' failed' }}">
<strong>{{ verdict.about }}.</strong> {{ verdict.text }}</p>
{% endfor %}
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
{% if section.text %}<pre>{{ section.text }}</pre>{% endif %}
{% if section.figure %}<img alt="{{ section.title }}" src="{{ png(section.figure) }}">{% endif %}
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Verdict:
    """A sentence at the top of the page: green if passed, red if not."""

    about: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Section:
    """A heading with a note, preformatted text or a figure."""

    title: str
    note: str = ""
    text: str = ""
    figure: Figure | None = None


def write_page(path: Path, title: str, verdicts: list[Verdict], sections: list[Section]) -> Path:
    """Render and write; returns the absolute path."""
    page = Environment(autoescape=True).from_string(TEMPLATE)
    path.write_text(
        page.render(title=title, verdicts=verdicts, sections=sections, png=_png), encoding="utf-8"
    )
    return path.resolve()


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
