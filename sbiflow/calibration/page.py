"""The page that a calibration report is written to: one file, no scripts, nothing loaded from outside."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from sbiflow.calibration.report import CalibrationReport

_QUESTIONS = {
    "HPD coverage": "Do highest-density regions hold the truth as often as they say?",
    "TARP": "Do balls around points that follow the data hold the truth as often as they say?",
    "log-likelihood": "Do the draws fit the data as well as the truth does?",
    "distance to regression on x": "Do the draws lie as close to a linear fit to the data as the truth does?",
}
_OF_A_PARAMETER = "Is the truth an ordinary draw (SBC)?"


class Picture(NamedTuple):
    """A figure with its title, how to read it, and whether it takes the page's whole width."""

    title: str
    source: str
    caption: str
    wide: bool = False


def render(report: CalibrationReport) -> str:
    """The report as HTML."""
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE).render(
        report=report,
        ranks=_rank_pictures(report),
        pp=_pp_picture(report),
        created=report.provenance["created"][:16].replace("T", " ") + " UTC",
        question=lambda test: _QUESTIONS.get(test.name, _OF_A_PARAMETER),
        provenance={name: value for name, value in report.provenance.items() if value},
    )  # fmt: skip


def _rank_pictures(report: CalibrationReport) -> list[Picture]:
    return [
        Picture(
            "Ranks of the truth",
            _svg(report.rank_figure()),
            "Each line is the cumulative share of ranks minus what uniform ranks would give. Inside the grey "
            "band: no fault. One hump, above or below zero: shifted. Up, then down: too narrow. Down, then up: "
            "too wide.",
            wide=True,
        ),
        Picture(
            "Coverage of highest-density regions",
            _svg(report.coverage_figure()),
            "A region of mass p should hold the truth in a share p of all cases. Below the diagonal: "
            "overconfident. Above: too wide.",
        ),
        Picture(
            "TARP: coverage of balls",
            _svg(report.tarp_figure()),
            "The same for balls around reference points, which the data of each case and earlier cases place where "
            "truths were missed. Below the diagonal: too narrow. Above: the data say more than the posterior does.",
        ),
    ]


def _pp_picture(report: CalibrationReport) -> Picture:
    return Picture(
        "P-P plot",
        _svg(report.pp_figure()),
        "Of the true values, a share p should lie below credible level p. The curve of an exact posterior leaves "
        "the three bands, anywhere, with probability 32\u00a0%, 4.6\u00a0% and 0.27\u00a0%.",
    )


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


TEMPLATE = """{% macro show(picture) %}
<figure{{ ' class=wide' if picture.wide else '' }}><h3>{{ picture.title }}</h3>
<div class="scroll"><img alt="{{ picture.title }}" src="{{ picture.source }}"></div>
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ "PASS" if report.passed else "FAIL" }}: calibration of {{ report.provenance["simulator"] }}</title>
<style>
:root { color-scheme: light }
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; background: #fff; max-width: 56rem;
  margin: 2rem auto; padding: 0 1rem }
h1, h2, h3, th, .word, .verdict { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .2rem }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; border-bottom: 1px solid #bbb; padding-bottom: .2rem }
p.sub, p.note, figcaption { color: #444 }
p.sub { margin: 0 0 1.2rem }
p.note { margin: .2rem 0 .6rem; font-size: .95rem }
.verdict { border: 2px solid #00674a; border-left-width: .7rem; padding: .8rem 1.1rem; background: #f1faf6 }
.verdict.failed { border-color: #b03a00; background: #fff5ef }
.verdict p { margin: .3rem 0 }
.verdict .big { font-size: 1.5rem; font-weight: 700; letter-spacing: .03em; margin: 0 }
.verdict ul { margin: .4rem 0; padding-left: 1.2rem }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 1rem 0 0; padding: 0 }
.facts div { min-width: 7rem } .facts dt { font-size: .85rem; color: #444 } .facts dd { margin: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .95rem; margin: .3rem 0 0 }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { font-size: .85rem; border-bottom: 1px solid #888 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.word { font-weight: 700; white-space: nowrap; font-size: .9rem }
.pass { color: #00674a } .fail { color: #b03a00 } .warn { color: #7a5a00 }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 2rem }
figure { margin: 1rem 0 0; flex: 1 1 22rem; max-width: 27rem; break-inside: avoid }
figure.wide { flex-basis: 100%; max-width: 100% } figure.wide img { min-width: 34rem }
figure h3 { font-size: 1rem; margin: 0 0 .3rem }
.beside { flex: 1 1 14rem; margin-top: 2.2rem }
img { width: 100%; height: auto; display: block }
figcaption { font-size: .9rem; margin-top: .3rem }
table.plain td:first-child { color: #444; white-space: nowrap } table.plain td { overflow-wrap: anywhere }
@media (max-width: 34rem) {
  body { margin-top: 1rem } td.asks, th.asks { display: none } table.plain td:first-child { white-space: normal }
}
@media print {
  body { font-size: 10.5pt; max-width: none; margin: 0; padding: 0; print-color-adjust: exact }
  h2 { break-after: avoid } tr { break-inside: avoid } figure { flex-basis: 45% } figure.wide img { min-width: 0 }
}
</style></head><body>
<h1>Calibration of {{ report.provenance["proposal"] }} for {{ report.provenance["simulator"] }}</h1>
<p class="sub">{{ created }}</p>

<div class="verdict{{ '' if report.passed else ' failed' }}" id="verdict">
<p class="big">{{ "✓ PASS" if report.passed else "✗ FAIL" }}</p>
<p>{{ report.headline }}</p>
{% if report.faults %}<ul>{% for fault in report.faults %}<li>{{ fault }}</li>{% endfor %}</ul>{% endif %}
{% for warning in report.warnings %}<p><span class="word warn">WARNING</span> {{ warning }}</p>{% endfor %}
</div>
<dl class="facts">
<div><dt>fresh simulations</dt><dd>{{ "{:,}".format(report.n) }}
{%- if report.n_failed %}, {{ report.n_failed }} failed{% endif %}</dd></div>
<div><dt>draws for each</dt><dd>{{ "{:,}".format(report.draws) }}</dd></div>
<div><dt>mean log q(θ*|x*)</dt>
<dd>{{ "%.3f ± %.3f nats"|format(report.mean_log_q, report.mean_log_q_error) }}</dd></div>
<div><dt>seed</dt><dd>{{ report.seed }}</dd></div>
<div><dt>wall time</dt><dd>{{ "%.1f s"|format(report.seconds) }}</dd></div>
</dl>

<h2>Rank tests</h2>
<p class="note">Parameters are drawn from the prior, data are simulated from them, and the true values are ranked
among posterior draws. For an exact posterior every rank below is uniform. Each test has the level
{{ "%.2g"|format(report.ranks.alpha_each) }}, so that all together raise a false alarm with probability
{{ "%g"|format(report.ranks.alpha) }} at most (Bonferroni); the p-values are exact.</p>
<div class="scroll"><table>
<tr><th>quantity</th><th class="asks">question</th><th class="number">p-value</th><th>result</th></tr>
{% for test in report.ranks.tests %}{% set good = test.passed(report.ranks.alpha_each) %}
<tr><td>{{ test.name }}</td><td class="asks">{{ question(test) }}</td><td class="number">{{ test.p_text }}</td>
<td>{% if good %}<span class="word pass">PASS</span>
{% else %}<span class="word fail">FAIL</span> {{ test.reading }}{% endif %}</td></tr>
{% endfor %}
</table></div>
<div class="pictures">
{% for picture in ranks %}{{ show(picture) }}{% endfor %}
</div>

<h2>P-P test of each parameter</h2>
<p class="note">Kolmogorov-Smirnov p-values of the credible levels. Fisher's combination assumes that the
parameters' p-values are independent, which correlated posteriors break; Bonferroni's holds always. Both are for
comparison with the literature: the verdict rests on the rank tests above, which see the same levels.</p>
<div class="pictures">{{ show(pp) }}
<div class="beside"><table>
<tr><th>parameter</th><th class="number">p-value</th></tr>
{% for name, p in report.pp.p_by_name.items() %}
<tr><td>{{ name }}</td><td class="number">{{ "%.2g"|format(p) }}</td></tr>
{% endfor %}
<tr><td>combined, Bonferroni</td><td class="number">{{ "%.2g"|format(report.pp.bonferroni) }}</td></tr>
<tr><td>combined, Fisher (if independent)</td><td class="number">{{ "%.2g"|format(report.pp.fisher) }}</td></tr>
</table></div></div>

<h2>What was learned</h2>
<p class="note">Contraction is one minus posterior variance over prior variance: 0 if nothing was learned, 1 if
everything. The linear fit is what an ordinary regression on the data explains; an exact posterior never knows
less.</p>
<div class="scroll"><table>
<tr><th>parameter</th><th class="number">contraction</th><th class="number">linear fit</th><th>result</th></tr>
{% for row in report.contraction %}
<tr><td>{{ row.name }}</td>
<td class="number">{{ "%.4f ± %.4f"|format(row.contraction, row.error) }}</td>
<td class="number">{{ "%.4f ± %.4f"|format(row.linear, row.linear_error) }}</td>
<td>{% if row.misses_information %}<span class="word fail">FAIL</span>
{% elif not row.learned %}<span class="word warn">WARNING</span>
{% else %}<span class="word pass">PASS</span>{% endif %} {{ row.reading }}</td></tr>
{% endfor %}
</table></div>

<h2>Provenance</h2>
<div class="scroll"><table class="plain">
{% for name, value in provenance.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
<tr><td>seed</td><td>{{ report.seed }}: with the versions above it gives the same simulations and draws</td></tr>
</table></div>
</body></html>
"""
