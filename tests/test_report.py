"""The HTML report and the figures: complete, self-contained, safe against names, and leaving no trace behind."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from inference.compare import compare
from inference.plots import comparison_figures
from tests.handmade_fits import chain_fit, gaussian_vi, normal, sites, vi_fit

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def comparison():
    fits = {"nuts": chain_fit(sites(normal(0))), "auto": gaussian_vi(1), "svi": gaussian_vi(2, sd=0.6)}
    return compare(fits)


@pytest.fixture(scope="module")
def html(comparison, tmp_path_factory):
    return comparison.to_html(tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_says_what_was_found(html):
    page = read(html)
    text = " ".join(page.words)
    for words in (
        "TRUST",
        "MEANS ONLY",
        "theta[4]",
        "How to read",
        "Cost",
        "Approximation(guide=",
        "k-hat",
        "numpy",
        "seed",
        "±",
    ):
        assert words.lower() in text.lower()
    assert page.tags.count("img") == 6


def test_the_page_needs_no_network(html):
    assert "://" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    page = read(html)
    assert not {"link", "script", "iframe", "object"} & set(page.tags)
    assert all(value.startswith("data:image/png;base64,") for key, value in page.attributes if key in ("src", "href"))


def test_figures_are_png_below_a_megabyte(html):
    images = re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    assert images
    for image in map(base64.b64decode, images):
        assert image.startswith(b"\x89PNG")
        assert len(image) < 1_000_000


def test_names_from_outside_are_escaped(tmp_path):
    draws = [{EVIL: normal(s)[..., 0], "theta": normal(s)[..., 1:]} for s in (0, 1)]
    reference = chain_fit(draws[0], data={EVIL: np.zeros((3, 2))}, notes=(EVIL,))
    candidate = vi_fit(draws[1])
    comparison = compare({EVIL: reference, "<b>vi": candidate}, reference=EVIL)
    html = comparison.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>vi" not in html
    page = read(html)
    assert EVIL in " ".join(page.words)


def test_a_name_with_mathematics_is_drawn_as_it_stands(tmp_path):
    """Matplotlib would read dollars as a formula, and fail on one it cannot parse."""
    draws = [{r"$\frac{a$": normal(s)[..., 0], "b_$^$/c": normal(s)[..., 1]} for s in (0, 1)]
    comparison = compare({"$^$": chain_fit(draws[0]), "$_$": vi_fit(draws[1])}, reference="$^$")
    assert comparison.to_html(tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("num_quantities", [2, 60])
def test_figures_leave_no_trace(num_quantities):
    before = dict(mpl.rcParams)
    fits = {
        "nuts": chain_fit(sites(normal(0, num_quantities=num_quantities))),
        "vi": gaussian_vi(1, num_quantities=num_quantities, shift=0.2),
    }
    figures = comparison_figures(compare(fits))
    assert set(figures) == {"marginals", "errors", "pair", "loss", "trace", "ranks"}
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before
    assert all(figure.axes for figure in figures.values())


def test_awkward_fits_are_drawn_too(tmp_path):
    """A single quantity, a point estimate, heavy tails, NaN draws, a loss with NaN, a reference that is not MCMC."""
    rng = np.random.default_rng(0)
    reference = chain_fit({"s": np.abs(rng.standard_cauchy(size=(4, 1000)))})
    spoiled = np.abs(rng.standard_cauchy(size=(4, 1000)))
    spoiled[0, 0] = np.nan
    point = vi_fit({"s": np.ones((4, 1000))}, history={"loss": np.array([5.0, np.nan, 3.0])})
    comparison = compare({"nuts": reference, "delta": point, "bad": vi_fit({"s": spoiled}, history={})})
    read(comparison.to_html(tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "pair" not in comparison_figures(comparison)
    swapped = compare({"vi": gaussian_vi(0), "nuts": chain_fit(sites(normal(1)))}, reference="vi")
    assert "trace" not in comparison_figures(swapped)
    read(swapped.to_html(tmp_path / "two.html").read_text(encoding="utf-8"))


def test_nothing_to_draw_is_still_a_page(tmp_path):
    x = normal(0)
    x[0, 0, 0] = np.nan
    comparison = compare({"nuts": chain_fit(sites(x)), "vi": replace(gaussian_vi(1), history={})})
    page = read(comparison.to_html(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "CANNOT TELL" in " ".join(page.words)
    assert "img" not in page.tags
