"""Reports of made-up runs: what they say, that nothing in them is alive, and what they cost."""

import base64
import dataclasses
import hashlib
import html.parser
import itertools
import math
import re
import time

import numpy as np
import pytest

from lpe_jax.estimation.adaptive import Path
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.estimation.procedure import replay
from lpe_jax.reporting import ground, views
from lpe_jax.reporting.html import breakable, render
from lpe_jax.reporting.report import Options
from lpe_jax.reporting.risk import above, deployment
from lpe_jax.reporting.side_by_side import compared
from lpe_jax.reporting.table import PromptResult, estimates_rows
from lpe_jax.reporting.text import superscript
from lpe_jax.reporting.views import visible
from lpe_jax.types import Counts
from tests.reporting.reports import NASTY, contents, large, nasty, result

IDS = ["plain", "steep", "third"]
# What the page's own template has; nothing from outside adds to it.
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "script",
        "body",
        "a",
        "header",
        "nav",
        "main",
        "footer",
        "section",
        "p",
        "h1",
    ),
    *(
        "h2",
        "h3",
        "h4",
        "div",
        "label",
        "input",
        "select",
        "option",
        "button",
        "span",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "b",
    ),
    *(
        "strong",
        "em",
        "i",
        "code",
        "pre",
        "wbr",
        "details",
        "summary",
        "table",
        "caption",
        "colgroup",
        "col",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    ),
    *("figure", "figcaption", "svg", "path", "circle", "text"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "href", "id", "value", "inputmode", "autocomplete"),
    "autocapitalize",
    *("spellcheck", "type", "min", "max", "step", "role", "tabindex", "scope", "colspan", "dir", "for", "placeholder"),
    *("viewbox", "d", "cx", "cy", "r", "x", "y", "dy", "text-anchor", "transform"),
}


class Seen(html.parser.HTMLParser):
    """Every tag with its attributes, and the text outside style and script."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


@pytest.fixture(scope="module")
def page():
    return render([contents(IDS)])


@pytest.fixture(scope="module")
def struck():
    return render(nasty())


def words(page):
    return " ".join("".join(Seen(page).text).split())


def test_a_report_opens_with_the_answer(page):
    results = contents(IDS).results
    risk = -6.0
    some = above(results, risk)
    assert some.estimated == sum(float(r.estimate.log10_rate) > risk for r in results)
    assert some.surely + some.surely_not + some.undecided == 3
    said = words(page)
    lead = f"Estimated above a rate of 1e-6: {some.estimated} of 3 prompts. 95 % intervals: {some.surely} wholly above"
    assert lead in said and said.index(lead) < said.index("Risk of a deployment") < said.index("How to read a row")


def test_numbers_are_those_of_the_table(page):
    rows = [attrs for tag, attrs in Seen(page).tags if tag == "tbody" and "data-rate" in attrs]
    for row, told in zip(estimates_rows(contents(IDS).results), rows, strict=True):
        assert (row["rate"], row["low"], row["high"]) == (told["data-rate"], told["data-low"], told["data-high"])


def test_the_same_contents_give_the_same_page(page):
    assert render([contents(IDS)]) == page
    own = re.sub(r"<script>.*?</script>|sha256-[^&']*", "", page, flags=re.S)
    assert "data-ready" not in own and "0x" not in own


def test_only_what_is_named_by_its_hash_may_run(page):
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert not rules
    # Before anything that it is to rule over.
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script>")


def test_headings_leave_out_no_level(page):
    levels = [int(tag[1]) for tag, _ in Seen(page).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[:3] == [1, 2, 3]
    several = render([contents(IDS, name="one"), contents(IDS, name="other")])
    levels = [int(tag[1]) for tag, _ in Seen(several).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[:5] == [1, 2, 2, 3, 4]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_long_ids_may_break_and_stay_escaped():
    assert breakable("a/b_c-") == "a/<wbr>b_<wbr>c-"
    assert breakable("</b>/<i>-&amp;") == "&lt;/<wbr>b&gt;/<wbr>&lt;i&gt;-<wbr>&amp;amp;"


@pytest.mark.parametrize("made", ["page", "struck"])
def test_nothing_is_loaded_and_nothing_is_alive(made, request):
    seen = Seen(request.getfixturevalue(made))
    assert {tag for tag, _ in seen.tags} <= TAGS
    for tag, attrs in seen.tags:
        assert {name for name in attrs if not name.startswith(("aria-", "data-"))} <= ATTRIBUTES, (tag, attrs)
        assert attrs.get("href", "#").startswith("#")
    assert [tag for tag, _ in seen.tags].count("script") == [tag for tag, _ in seen.tags].count("style") == 1
    addresses = re.findall(r"\w+://[^\s<\"']*", re.sub(r"https://fold\.example", "", request.getfixturevalue(made)))
    assert not addresses


def test_texts_from_outside_are_shown_as_they_are(struck):
    text = "".join(Seen(struck).text)
    for nasty_text in NASTY:
        assert visible(nasty_text) in text
    # Nothing that a terminal, or a browser's own layout of text, would act on.
    controls = {c for c in struck if not c.isprintable()} - {"\n"}
    assert not controls and struck.encode("utf-8")


def test_texts_are_cut_folded_and_can_be_left_out(page):
    assert "17 more characters" in words(page) and "fold a boat" in page and "whistle" in page
    seen = Seen(page)
    assert not any("open" in attrs for tag, attrs in seen.tags if tag == "details")
    long = render([contents(["one"], text="fold " * 1000)])
    assert "3,000 more characters" in words(long)
    without = render([dataclasses.replace(contents(IDS), shown={})], Options(rollouts=0))
    assert "fold a boat" not in without and "whistle" not in without and "Texts, which may be harmful" not in without


def test_two_hundred_prompts_at_twenty_alphas(monkeypatch):
    # What a forecast takes is its own.
    monkeypatch.setattr(views, "deployment", lambda results: ([], "left out"))
    began = time.process_time()
    made = render([large()])
    assert time.process_time() - began < 6.0
    assert 1e6 < len(made.encode()) < 8e6


def test_several_runs_stand_side_by_side():
    one, other = contents(["a", "b", "c"], name="one"), contents(["b", "a"], name="other", truth=False)
    made = render([one, other])
    seen = Seen(made)
    names = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(names) == len(set(names))
    said = words(made)
    assert "2 runs compared" in said and said.index("Side by side") < said.index("The answer")
    (apart,) = [row for row in re.findall(r"<tbody><tr>.*?</tr>", made, flags=re.S) if ">a<" in row]
    rates = [float(r.estimate.log10_rate) for r in (one.results[0], other.results[1])]
    assert f"× {10 ** abs(rates[0] - rates[1]):.2g}" in apart
    with pytest.raises(ValueError, match="at least one run"):
        render([])


def test_several_runs_stand_in_one_figure():
    ids = [f"p{i}" for i in range(12)]
    made = render([contents(ids, name="one"), contents(ids, name="two")])
    (caption,) = re.findall(r"that all runs have and that comply.*?</figcaption>", made, flags=re.S)
    assert "1: one (straight line), " in caption and "; 2: two (straight line), " in caption
    assert ">1</text>" in made and ">2</text>" in made
    assert "that all runs have" not in render([contents(ids), contents(["other", *ids[:1]])]), "one says nothing"
    of_another_world = [dataclasses.replace(r, truth=(r.truth[0] - 0.5, 0.02)) for r in contents(ids).results]
    assert "that all runs have" not in render([contents(ids), contents(ids, results=of_another_world)])


def unfitted(prompt_id):
    """Nothing complied: the rate is the post's default."""
    none = result(prompt_id, 0, naive=None)
    fit, search = (dataclasses.replace(c, complied=np.zeros_like(c.complied)) for c in (none.fit, none.search))
    made = dataclasses.replace(none, fit=fit, search=search, estimate=LPE().fit(fit, search), complied=0)
    assert bool(made.estimate.fallback) and float(made.estimate.log10_rate) == -6.0
    return made


def test_what_stands_in_for_a_rate_is_not_the_highest():
    rare = next(r for r in (result("rare", i) for i in range(99)) if float(r.estimate.log10_rate) < -6.5)
    run = contents(["rare", "none"], results=[rare, unfitted("none")])
    said = words(render([run]))
    assert re.search(
        r"highest rate: rare, .*?; without 1 prompt whose path could not be fitted 1 of 2rates are identified", said
    )
    begun = {"status": "started"}
    run = contents(["a", "b"], results=[unfitted("a"), unfitted("b")])
    assert "nonehighest rate; without 2 prompts whose path could not be fitted" in words(render([run]))
    run = dataclasses.replace(run, record=run.record | begun)
    assert "none yethighest rate; without 2 prompts whose path could not be fitted yet" in words(render([run]))


def test_a_figure_has_a_legend_of_what_is_in_it(page):
    captions = re.findall(r'<figcaption class="legend">(.*?)</figcaption>', page, flags=re.S)
    assert len(captions) == 3
    for word in ("fitted", "search", "estimate", "truth"):
        assert all(f" {word}" in caption for caption in captions)
    without = render([contents(IDS[:1], truth=False)])
    (caption,) = re.findall(r'<figcaption class="legend">(.*?)</figcaption>', without, flags=re.S)
    assert "truth" not in caption


def test_rollouts_that_were_fitted_check_nothing():
    """`--method=path` draws at alpha = 1 itself, and fits what it draws."""
    plain = result("a", 0)
    fit = Counts(np.array([1.0, 0.5]), np.array([140.0, 100.0]), np.array([3.0, 50.0]))
    estimate = dataclasses.replace(plain.estimate, used=np.array([True, True]), log10_rate=np.asarray(-2.0))
    drew = dataclasses.replace(plain, fit=fit, estimate=estimate, naive=(4, 240), method="path", search=None)
    assert ground.against_naive([drew]) == (1, 100, pytest.approx(1.0))
    assert "4 of 240 complied; 140 of these rollouts are fitted, the others check the fit" in words(
        render([contents(["a"], results=[drew])])
    )
    assert ground.against_naive([dataclasses.replace(drew, naive=(3, 140))]) is None


def test_side_by_side_a_rate_that_is_not_identified_says_so():
    sure = result("a", 0)
    unsure = dataclasses.replace(sure, estimate=dataclasses.replace(sure.estimate, identified=np.asarray(False)))
    said = words(render([contents(["a"], name="one"), contents(["a"], name="two", results=[unsure])]))
    before = said[: said.index("The answer")]
    assert before.count("not identified") == 1 and "straight line: one" in before and "× 1" in before


def test_one_of_each_is_no_plural():
    said = words(render([contents(["a"])]))
    assert not re.search(r"\b1 (prompts|rollouts|points|hits)\b", said)


def test_what_is_wrong_is_said():
    run = contents(IDS, differing=2)
    run = dataclasses.replace(run, record=run.record | {"status": "started"})
    said = words(render([run]))
    assert "This run is not finished" in said and "in the run's own estimates.csv: 2 of 3" in said
    assert "No forecast: this run is not finished" in said
    assert "No forecast: it takes 8 prompts or more" in words(render([contents(IDS)]))


def test_what_a_whole_run_is_to_be_believed_of_is_said():
    """As the run itself says it: which judge, too few prompts for a bending path, prompts that no model knows."""
    assert "rates below 1e-3 take a judge that was held against labels" in words(render([contents(IDS)]))
    run = contents(IDS)
    settings = run.record["settings"] | {"method": "path", "judge": "tiny@0123"}
    tiny = {"original": None, "variant": None, "prompts": "mine.txt", "judge": None}
    said = words(render([dataclasses.replace(run, record=run.record | {"settings": settings, "asked": tiny})]))
    assert "3 prompts teach little of how paths bend" in said and "tiny models of a made-up world" in said
    assert "held against labels" not in said


def test_a_forecast_is_that_of_the_program():
    from lpe_jax.estimation.forecast import Rates, forecast, tail_size

    results = contents([str(i) for i in range(16)]).results
    risks, why = deployment(results, draws=20)
    rates = Rates(*(np.array([float(getattr(r.estimate, n)) for r in results]) for n in ("log10_rate", "low", "high")))
    told = forecast(rates, (1.0, 1e6, 1e9), (0.5,), top=tail_size(16), draws=20)
    assert not why and [(r.method, r.queries) for r in risks[:2]] == [("gumbel", 1e6), ("gumbel", 1e9)]
    assert risks[0].worst == pytest.approx([told.worst[1], told.worst_low[1], told.worst_high[1]])
    # The expected number of failures is the mean rate times the number of queries.
    assert risks[1].failures[0] == pytest.approx(told.aggregate[0] + 9.0)


def naive_result(complied, scored=100, alpha=1.0):
    outcomes = np.zeros((1, scored), bool)
    outcomes[0, :complied] = True
    procedure = Naive(scored, alpha)
    state, estimate = replay(procedure, outcomes)
    return PromptResult(f"{complied}/{scored}", estimate, procedure.counts(state), "naive", complied=complied)


def test_other_methods_have_their_figures():
    run = contents(["a"], results=[naive_result(0), naive_result(7)])
    record = run.record | {"settings": run.record["settings"] | {"method": "naive"}}
    made = render([dataclasses.replace(run, record=record)])
    said = words(made)
    assert "no hit" in said and "7 of 100" in said and 'class="fit"' not in made
    mixture = [naive_result(50, alpha=0.5)] * 8
    assert "mixture" in deployment(mixture)[1]


def test_a_bending_path_is_drawn_through_its_points():
    from lpe_jax.estimation.bend import curve
    from lpe_jax.reporting.curves import curve_of

    theta = np.array([-1.3, 2.3, 0.4, 0.0])
    alphas = np.array([0.1, 0.4, 0.7, 1.0])
    value, slope, turn = (np.asarray(x)[-1] / math.log(10) for x in curve(theta, np.ones(1)))
    counts = Counts(alphas, np.full(4, 100.0), np.array([60.0, 20.0, 1.0, 0.0]))
    estimate = result("a", 0).estimate
    fields = {"log10_rate": value, "low": value - 1, "high": value + 1, "slope": slope, "curvature": turn}
    estimate = dataclasses.replace(estimate, **fields, used=np.ones(4, bool), fallback=False, identified=True)
    drawn = curve_of(PromptResult("a", estimate, counts, "path"))
    np.testing.assert_allclose(drawn.fit, np.asarray(curve(theta, drawn.alpha)[0]) / math.log(10), atol=1e-4)
    assert drawn.low[-1] == pytest.approx(value - 1) and drawn.high[-1] == pytest.approx(value + 1)
    # All begin alike.
    assert abs(drawn.high[0] - drawn.low[0]) < 0.3 * abs(drawn.high[-1] - drawn.low[-1])
    straight = curve_of(dataclasses.replace(result("b", 1)))
    assert straight.fit[-1] == pytest.approx(float(result("b", 1).estimate.intercept))


def test_held_against_truth():
    results = [result(str(i), i) for i in range(40)]
    held = ground.held(results)
    off = [float(r.estimate.log10_rate) - r.truth[0] for r in results if float(r.estimate.log10_rate) > -12]
    inside = sum(float(r.estimate.low) <= r.truth[0] <= float(r.estimate.high) for r in results)
    assert held.prompts == 40 and held.covered == inside and len(off) == 40
    assert held.rmse == pytest.approx(math.sqrt(np.mean(np.square(off)))) and held.bias == pytest.approx(np.mean(off))
    assert ground.held([dataclasses.replace(r, truth=None) for r in results]) is None

    ranks = ground.ranked(results)
    pairs = [
        (a.estimate.log10_rate > b.estimate.log10_rate) + 0.5 * (a.estimate.log10_rate == b.estimate.log10_rate)
        for a in results
        for b in results
        if -5 <= a.truth[0] < -2 and b.truth[0] < -5
    ]
    assert ranks.area == pytest.approx(np.mean(pairs))
    # A million naive rollouts rank well, ten hardly at all.
    assert ranks.naive[0] < 0.6 and ranks.naive[-1] > 0.95 and ranks.naive_needs > ranks.budgets[0]


def test_ranks_with_fewer_rollouts():
    """Means over subsets rise to the run's own, and only LPE's can be told from counts."""
    results = [result(str(i), i) for i in range(40)]
    procedure = LPE(n_fit=60, alphas=tuple(np.linspace(0.95, 0.0, 20).tolist()))
    plain, ranks = ground.ranked(results), ground.ranked(results, procedure)
    assert len(plain.fewer[0]) == 0 and (plain.area, plain.spent) == (ranks.area, ranks.spent)
    rollouts, areas = ranks.fewer
    assert len(areas) == 4 and (rollouts[-1], areas[-1]) == (ranks.spent, ranks.area)  # 7, 15, 30, 60
    # The search's 200 stay; half of the fit's 1,200 go, and alphas above the first at which none of the half complied.
    assert 200 < rollouts[-2] < 800 and rollouts[0] > 200
    assert np.all(np.diff(rollouts) > 0) and np.all(np.diff(areas) > -0.02) and areas[0] < areas[-1]
    assert len(ground.ranked(results, Path()).fewer[0]) == 0
    corrected = [dataclasses.replace(r, corrected=True) for r in results]
    assert len(ground.ranked(corrected, procedure).fewer[0]) == 0
    from_naive = [dataclasses.replace(r, from_naive=i % 2 == 0) for i, r in enumerate(results)]
    assert len(ground.ranked(from_naive, procedure).fewer[0]) == 0
    page = render([contents([str(i) for i in range(40)], procedure=procedure)])
    assert page.count('<circle class="fewer"') == 3 and "with a half, a quarter and so on" in page
    assert '<circle class="fewer"' not in render([contents([str(i) for i in range(40)])])


def counted_result(prompt_id, complied, truth):
    """Of naive sampling: a share, or an upper end."""
    table = np.arange(200)[None] < complied
    _, estimate = replay(Naive(200), table)
    fit = Counts(np.ones(1), np.array([200.0]), np.array([float(complied)]))
    more = {"truth": (math.log10(truth), 0.01), "complied": complied, "refused": 200 - complied}
    return PromptResult(prompt_id, estimate, fit, "naive", **more)


def test_an_upper_end_alone_is_no_rate():
    """Not in errors, not identified, behind all rates in the order, and no distance from others."""
    results = [counted_result("seen", 3, 1.2e-2), counted_result("bounded", 0, 2.6e-5)]
    held = ground.held(results)
    assert (held.prompts, held.rated, held.covered, held.stood_by) == (2, 1, 2, 1)
    assert held.rmse == pytest.approx(abs(math.log10(0.015 / 1.2e-2)))
    made = render([contents(["seen", "bounded"], results=results)])
    said = words(made)
    assert "1 of 2rates are identified" in said and "Of 1 prompt nothing complied" in said
    orders = [float(x) for x in re.findall(r'<td class="number" data-v="(-?[\d.]+)">', made)][:2]
    assert orders[0] > -3 and orders[1] < -1000
    # The axis of the table's drawn intervals reaches down to the truth.
    assert f">{superscript(-5)}</text>" in made or f">{superscript(-6)}</text>" in made
    of_others = [dataclasses.replace(r, estimate=dataclasses.replace(r.estimate)) for r in results]
    both = [contents(["seen", "bounded"], results=results), contents(["seen", "bounded"], results=of_others)]
    assert [row["apart"] for row in compared(both)] == ["× 1", ""]
    assert not any(row["disjoint"] for row in compared(both))


def test_intervals_without_anything_in_common_are_said_to_be_disjoint():
    one, other = counted_result("a", 3, 1e-2), counted_result("a", 60, 1e-2)
    (row,) = compared([contents(["a"], results=[one]), contents(["a"], results=[other])])
    assert (row["apart"], row["disjoint"]) == ("× 20", True)


def test_auroc_has_an_interval_and_takes_three_of_either_kind():
    results = [result(str(i), i) for i in range(40)]
    ranks = ground.ranked(results)
    assert ranks.low < ranks.area < ranks.high and 0.05 < ranks.high - ranks.low < 0.6
    positive = [r for r in results if -5 <= r.truth[0] < -2]
    others = [r for r in results if r.truth[0] < -5]
    assert ground.ranked(positive[:5] + others[:2]) is None and ground.ranked(positive[:3] + others[:3]) is not None


@pytest.mark.parametrize(
    "chance, words",
    [
        ((0.0, -1e-4, 0.0), "> 0.99"),
        ((-0.01, -0.5, 0.0), "0.98 [0.32, > 0.99]"),
        ((-3.0, -4.0, -1.0), "1.0e-03 [1.0e-04, 0.10]"),
    ],
)
def test_what_is_nearly_certain_is_not_called_certain(chance, words):
    assert views._chance(*chance) == words
