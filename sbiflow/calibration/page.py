"""The page that a calibration report is written to: no scripts, no outside files."""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Calibration: {{ report.provenance["simulator"] }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.verdict { padding: 1rem 1.2rem; border-left: .5rem solid #2a7; background: #eefaf4; font-size: 1.1rem }
.verdict.failed { border-color: #c33; background: #fdf0f0 }
.fail { color: #b22; font-weight: 600 }
img { max-width: 100% }
p.note { color: #555 }
</style></head><body>
<h1>Calibration of {{ report.provenance["proposal"] }} for {{ report.provenance["simulator"] }}</h1>
<p class="verdict{{ '' if report.passed else ' failed' }}">
<strong>{{ "PASSED" if report.passed else "FAILED" }}.</strong> {{ report.verdict }}</p>

<h2>Rank tests</h2>
<p class="note">The true value is ranked among {{ report.draws }} posterior draws for {{ report.n }} fresh
simulations. If the posterior is exact the ranks are uniform. Each test has the level
{{ "%.2g"|format(report.ranks.alpha_each) }}, so that all together raise a false alarm with probability
{{ "%g"|format(report.ranks.alpha) }} at most (Bonferroni).</p>
<table><tr><th>quantity</th><th>p-value</th><th>result</th></tr>
{% for test in report.ranks.tests %}<tr><td>{{ test.name }}</td>
<td class="number">{{ test.p_text }}</td>
<td{% if not test.passed(report.ranks.alpha_each) %} class="fail"{% endif %}>{{ result(test) }}</td></tr>
{% endfor %}</table>
{% for title, source in figures %}<h3>{{ title }}</h3><img alt="{{ title }}" src="{{ source }}">
{% endfor %}
<h2>What was learned</h2>
<p class="note">Contraction is one minus posterior variance over prior variance: 0 if nothing was learned,
1 if everything. The linear fit is what an ordinary regression on the data explains; a posterior must not know
less.</p>
<table><tr><th>parameter</th><th>contraction</th><th>linear fit</th><th>reading</th></tr>
{% for row in report.contraction %}<tr><td>{{ row.name }}</td>
<td class="number">{{ "%.4f ± %.4f"|format(row.contraction, row.error) }}</td>
<td class="number">{{ "%.4f ± %.4f"|format(row.linear, row.linear_error) }}</td>
<td{% if row in report.alarms %} class="fail"{% endif %}>{{ row.reading }}</td></tr>
{% endfor %}</table>

<h2>Provenance</h2>
<table>
<tr><td>mean log q(θ*|x*)</td>
<td>{{ "%.3f ± %.3f nats"|format(report.mean_log_q, report.mean_log_q_error) }}</td></tr>
<tr><td>seed</td><td>{{ report.seed }}</td></tr>
<tr><td>failed simulations</td><td>{{ report.n_failed }}</td></tr>
<tr><td>wall time</td><td>{{ "%.1f s"|format(report.seconds) }}</td></tr>
{% for name, value in report.provenance.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</body></html>
"""
