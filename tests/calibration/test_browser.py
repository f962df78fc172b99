"""The report in a browser: the verdict is there, every figure loads, nothing comes from outside, nothing overflows."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sbiflow.calibration import calibrate
from tests.toys import LinearGaussian

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
TOY = LinearGaussian()
# The page has no scripts: the test's copy gets one, which writes what the browser made of it into the document.
PROBE = """<script>addEventListener("load", () => {
  document.body.dataset.loaded = [...document.images].map(i => i.complete && i.naturalWidth > 50).join();
  document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth;
  document.body.dataset.requests = performance.getEntriesByType("resource").filter(
    e => !e.name.startsWith("data:")).length;
})</script></body>"""


@pytest.fixture(scope="module", params=[(1.0, "PASS", 3), (0.8, "FAIL", 4)], ids=["pass", "fail"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A report and its verdict. The exact posterior fails at alpha = 1e-4 with that probability."""
    scale, word, seed = request.param
    report = calibrate(
        TOY.exact_proposal(scale), TOY, n=500, draws=100, seed=seed, alpha=1e-4, progress=False
    )
    return report.to_html(tmp_path_factory.mktemp("page") / "report.html"), word


def chromium(*arguments: str, page: Path, width: int = 1000) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2600"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run(
        [*command, profile, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class References(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for k, v in attributes if k in ("src", "href", "srcset", "data", "action")]
        assert not any(k.startswith("on") for k, _ in attributes)


def test_the_file_holds_everything_and_runs_nothing(page: tuple[Path, str]) -> None:
    text = page[0].read_text(encoding="utf-8")
    found = References()
    found.feed(text)
    assert len(found.sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in found.sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?:", re.sub(r"base64,[^\"]*", "", text))


@needs_browser
def test_verdict_is_rendered_and_every_image_loads(page: tuple[Path, str], tmp_path: Path) -> None:
    path, word = page
    copy = tmp_path / "probe.html"
    copy.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    dom = chromium("--dump-dom", "--virtual-time-budget=10000", page=copy)
    verdict = dom[dom.index('id="verdict"') : dom.index("</dl>")]
    assert word in verdict
    assert ("too narrow" in verdict) == (word == "FAIL")
    assert 'data-loaded="true,true,true,true"' in dom
    assert 'data-requests="0"' in dom


@needs_browser
def test_nothing_overflows_at_400_pixels(page: tuple[Path, str], tmp_path: Path) -> None:
    """In a frame of that width: Chromium's own window is never narrower than 500."""
    relay = "parent.document.body.dataset.overflow = document.body.dataset.overflow"
    probe = PROBE.replace("})</script></body>", f"{relay}}})</script></body>")
    inner = page[0].read_text(encoding="utf-8").replace("</body>", probe)
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    frame = '<body><iframe src="inner.html" style="width:400px;height:2000px;border:0"></iframe></body>'
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    dom = chromium(
        "--dump-dom",
        "--virtual-time-budget=10000",
        "--allow-file-access-from-files",
        page=tmp_path / "frame.html",
    )
    overflow = re.search(r'data-overflow="(-?\d+)"', dom)
    assert overflow is not None and int(overflow[1]) <= 0


@needs_browser
def test_screenshot_is_not_blank(page: tuple[Path, str], tmp_path: Path) -> None:
    path, word = page
    shot = tmp_path / "page.png"
    chromium(f"--screenshot={shot}", "--hide-scrollbars", page=path)
    pixels = imread(shot)[..., :3]
    assert pixels.shape[1] == 1000
    ink = (pixels.min(-1) < 0.9).mean(1)  # share of each row that is not white
    assert (ink[:2000].reshape(20, 100).max(1) > 0.01).all()  # every 100 rows hold something
    red, green, _ = np.moveaxis(pixels[80:400], -1, 0)
    edge = (red - green > 0.3).sum() if word == "FAIL" else (green - red > 0.3).sum()
    assert edge > 1000  # the coloured edge of the verdict
