"""Figures: what cannot be drawn is refused where it is made; what can be drawn is drawn alike every time, for every reader."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.lab import drawing, interactive, looks
from nullius.lab.figures import Figure, Heatmap, Panel, Series, forest, from_dict, verdict_figure

FINITE = st.floats(-1e9, 1e9)
WORDS = st.text(max_size=12)
SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def series(draw, labelled):
    n = draw(st.integers(1, 5))
    x = [f"{draw(WORDS)} {i}" for i in range(n)] if labelled else draw(st.lists(FINITE, min_size=n, max_size=n))
    y = draw(st.lists(st.none() | FINITE, min_size=n, max_size=n))
    lo = hi = None
    if draw(st.booleans()):
        reach = draw(st.lists(st.none() | st.floats(0, 1e6), min_size=n, max_size=n))
        lo = [None if v is None or r is None else v - r for v, r in zip(y, reach, strict=True)]
        hi = [None if v is None else v + 1 for v in y]
    roles = st.sampled_from(["effect", "second", "third", "control", "published", "reference"])
    return Series(draw(WORDS), x, y, lo, hi, draw(st.sampled_from(["line", "points", "bars"])), draw(roles))


@st.composite
def panels(draw):
    if draw(st.booleans()):
        rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        values = [[draw(st.none() | FINITE) for _ in range(columns)] for _ in range(rows)]
        return Heatmap(draw(WORDS), draw(WORDS), draw(WORDS), values, draw(WORDS), ((0, columns - 1),))
    labelled = draw(st.booleans())
    curves = draw(st.lists(series(labelled), min_size=1, max_size=4))
    limits = draw(st.none() | st.tuples(st.floats(-9, 0), st.floats(0.1, 9)))
    return Panel(draw(WORDS), draw(WORDS), draw(WORDS), tuple(curves), limits, horizontal=labelled and draw(st.booleans()))


figures = st.builds(Figure, st.just("any"), WORDS, st.lists(panels(), min_size=1, max_size=3).map(tuple), WORDS)


def contest():
    """A figure with everything in it: a signed matrix, curves with bands, a control, a published value."""
    x = [0.0, 1.0, 2.0, 4.0]
    curves = (
        Series("in-context", x, [0.1, 0.3, 0.6, None], [0.0, 0.2, 0.5, None], [0.2, 0.4, 0.7, None]),
        Series("memorised", x, [0.7, 0.5, 0.2, 0.1], role="second"),
        Series("random head", x, [0.3, 0.3, 0.3, 0.3], role="control"),
        Series("published", [0.0, 4.0], [0.88, 0.88], role="published"),
    )
    heat = Heatmap("who writes", "head", "layer", [[0.1, -2.0], [None, 1.5]], "logits", ((0, 1),), ("h0", "h1"))
    return Figure("contest", "Memory <against> context & $5", (heat, Panel("one head", "factor", "share", curves, (0, 1))), "A caption.")


def verdict(claim, **changes):
    interval = {"estimate": 0.4, "lo": 0.3, "hi": 0.5, "n": 50, "n_clusters": 50}
    null = {"estimate": 0.0, "lo": -0.02, "hi": 0.02, "n": 50, "n_clusters": 50}
    entry = {"claim": claim, "word": "holds", "effect": interval, "control": null, "unit": "rate", "statistic": "mean", "margin": 0.05}
    return entry | {"kind": "above_control", "published": None} | changes


@settings(deadline=None)
@given(figures)
def test_a_figure_survives_json(figure):
    assert from_dict(json.loads(json.dumps(figure.to_dict()))) == figure


@pytest.mark.filterwarnings("error")  # matplotlib warns when a layout fails
@settings(max_examples=15, deadline=None)
@given(figures)
def test_any_figure_can_be_drawn(figure):
    root = ET.fromstring(drawing.svg(figure).encode())
    assert len([group for group in root.iter(f"{SVG}g") if re.match(r"axes_\d", group.get("id", ""))]) >= len(figure.panels)
    assert "</html>" in drawing.html(figure)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Series("s", [1, 2], [1, float("nan")]), "series 's': y: entry 1 is nan; give None"),
        (lambda: Series("s", [1, None], [1, 2]), "series 's': x: entry 1 is None, not a number"),
        (lambda: Series("s", [1, "a"], [1, 2]), "x mixes labels and numbers"),
        (lambda: Series("s", [1, 2, 3], [1, 2]), "x has 3 entries, y has 2"),
        (lambda: Series("s", [1], [1], [0]), "an interval needs both lo and hi"),
        (lambda: Series("s", [1], [1], [2], [0]), "entry 0 runs backwards, \\[2, 0\\]"),
        (lambda: Series("s", [1], [None], [0], [2]), "entry 0 has an interval but no y"),
        (lambda: Series("s", [1], [1], [float("inf")], [2]), "series 's': lo: entry 0 is inf"),
        (lambda: Series("s", [], []), "it has no points"),
        (lambda: Series("s", [1], [1], kind="pie"), "kind is one of line, points, bars, not 'pie'"),
        (lambda: Series("s", [1], [1], role="hero"), "role is one of effect, .*not 'hero'"),
        (lambda: Panel("p", "x", "y", ()), "panel 'p': it has no series"),
        (lambda: Panel("p", "x", "y", (Series("a", [1], [1]), Series("b", ["w"], [1]))), "some series have labels"),
        (lambda: Panel("p", "x", "y", (Series("a", [0, 1], [1, 1]),), log_x=True), "numbers above 0"),
        (lambda: Panel("p", "x", "y", (Series("a", [0], [1]),), y_range=(1, 1)), "y_range must rise"),
        (lambda: Panel("p", "x", "y", (Series("a", [0], [1]),), horizontal=True), "only categories"),
        (lambda: Heatmap("h", "x", "y", [[1, 2], [3]], "v"), "rows of different lengths, \\[1, 2\\]"),
        (lambda: Heatmap("h", "x", "y", [], "v"), "it has no values"),
        (lambda: Heatmap("h", "x", "y", [[1]], "v", ((1, 0),)), "no cell \\(1, 0\\) to mark"),
        (lambda: Heatmap("h", "x", "y", [[1, 2]], "v", x_ticks=("a",)), "1 x_ticks for 2 columns"),
        (lambda: Figure("Bad name", "t", (Heatmap("h", "x", "y", [[1]], "v"),)), "not 'Bad name'"),
        (lambda: Figure("empty", "t", ()), "it has no panels"),
        (lambda: from_dict({"name": "a"}), "not a figure of the shape nullius.figure/1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_svg_speaks_to_every_reader():
    root = ET.fromstring(drawing.svg(contest()).encode())
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Memory <against> context & $5"
    assert root.get("aria-labelledby") == f"{root.find(f'{SVG}title').get('id')} {root.find(f'{SVG}desc').get('id')}"
    description = root.find(f"{SVG}desc").text
    assert description.startswith("A caption.")
    assert "from −2 at layer 0, head h1 to 1.5 at layer 1, head h1" in description
    assert "memorised: 4 points, from 0.7 at the left to 0.1 at the right" in description
    shown = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"factor", "share", "head", "layer", "logits", "random head", "published"} <= set(shown)  # text stays text
    assert all("system-ui" in text.get("style") for text in root.iter(f"{SVG}text"))


def test_a_logarithmic_axis_has_the_numbers_of_its_points():
    places = (256, 512, 1024, 2048, 4096)
    panel = Panel("times", "tokens", "ms", (Series("chunks", places, (1, 2, 3, 4, 5)),), log_x=True)
    root = ET.fromstring(drawing.svg(Figure("times", "Times", (panel,))).encode())
    shown = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {f"{x:,}" for x in places} <= set(shown)
    assert not any("mathdefault" in text or "10^" in text for text in shown)
    assert drawing._log_ticks([1, 1.1, 1.2, 10, 100]) == [1, 10, 100]


def test_layers_are_whole_numbers():
    panel = Panel("by layer", "layer", "share", (Series("lexical", range(18), [0.1] * 18),))
    root = ET.fromstring(drawing.svg(Figure("depth", "Depth", (panel,))).encode())
    shown = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
    assert {"0", "2", "16"} <= shown
    assert "2.5" not in shown


def test_the_same_figure_gives_the_same_bytes_and_leaves_no_state():
    code = (
        "import sys, json; from nullius.lab import drawing; from nullius.lab.figures import from_dict\n"
        "figure = from_dict(json.loads(sys.stdin.read())); one = drawing.svg(figure)\n"
        "assert one == drawing.svg(figure); assert drawing.png(figure) == drawing.png(figure)\n"
        "import matplotlib; assert matplotlib.rcParams['svg.fonttype'] == 'path'; assert 'matplotlib.pyplot' not in sys.modules\n"
        "sys.stdout.reconfigure(encoding='utf-8'); print(one, end='')"
    )
    drawn = set()
    for seed in "12":
        environment = {"PYTHONHASHSEED": seed, "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(contest().to_dict()).encode(), env=environment, capture_output=True, check=True
        )
        drawn.add(done.stdout.replace(b"\r\n", b"\n"))
    assert drawn == {drawing.svg(contest()).encode()}
    assert b"<dc:date>" not in drawn.pop()


def test_html_needs_nothing_else():
    page = drawing.html(contest())
    assert "Plotly.newPlot" in page
    assert 500_000 < len(page) < 600_000  # the library itself is inside, packed
    assert 'showSendToCloud":false' in page  # plotly offers to send figures to its makers
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in outside
    assert not re.search(r"<script[^>]+src=|<link", page)
    assert "<title>Memory &lt;against&gt; context &amp; $5</title>" in page
    assert "<td>memorised</td><td>1</td><td>0.5</td>" in outside  # every value stands in a table
    assert drawing.html(contest()) == page


def test_markup_in_labels_stays_text():
    bad = "<img src=x onerror=alert(1)>"
    figure = Figure("f", bad, (Panel(bad, bad, bad, (Series(bad, [bad], [1.0], kind="points"),)),), bad)
    assert "<img" not in drawing.svg(figure)
    assert "<img" not in re.sub(r"<script.*?</script>", "", drawing.html(figure), flags=re.DOTALL)


def test_looks_differ_without_colour():
    every = [*looks.EFFECTS, *looks.CONTROLS, *looks.PUBLISHED, *looks.REFERENCES]
    assert len({(look.dash, look.marker, look.filled) for look in every}) == len(every)
    assert len({look.dash for look in looks.EFFECTS[:3]}) == len({look.marker for look in looks.EFFECTS[:3]}) == 3
    assert len({look.hatch for look in (*looks.EFFECTS, *looks.CONTROLS)}) == len((*looks.EFFECTS, *looks.CONTROLS))


def test_colours_are_okabe_ito_and_greys_that_stand_out_on_white():
    palette = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"}
    assert {look.colour for look in looks.EFFECTS} == palette
    for look in (*looks.EFFECTS[:3], *looks.CONTROLS, *looks.PUBLISHED, *looks.REFERENCES):
        channels = [int(look.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 3  # WCAG's contrast for graphics
        assert look in looks.EFFECTS or len(set(channels)) == 1


def test_a_role_used_twice_looks_different_the_second_time():
    chosen = looks.looks(
        [Series(str(i), [1], [1], role=role) for i, role in enumerate(["effect", "effect", "second", "control", "control"])]
    )
    assert chosen[0] == looks.EFFECTS[0]
    assert chosen[2] == looks.EFFECTS[1]
    assert len(set(chosen)) == 5


def test_long_labels_run_down_the_side_and_lines_never_do():
    labels = [f"a task with a long name {i}" for i in range(6)]
    bars, line = (Panel("", "task", "accuracy", (Series("s", labels, [0.5] * 6, kind=kind),)) for kind in ("bars", "line"))
    assert bars.sideways
    assert not line.sideways
    assert not Panel("", "bin", "accuracy", (Series("s", ["low", "high"], [0.1, 0.2], kind="bars"),)).sideways


def test_verdicts_become_a_forest_plot():
    open_ended = {"estimate": 0.1, "lo": None, "hi": float("inf"), "n": 9, "n_clusters": 1}
    verdicts = [
        verdict("a", published=0.88),
        verdict("b", word="fails", published="not given"),
        verdict("c", unit="", kind="equivalent", effect=open_ended, word="inconclusive"),
        verdict("d", effect=None, control=None, word="out of reach"),
    ]
    figure = verdict_figure("on a subject", verdicts)
    assert [panel.y_label for panel in figure.panels] == ["rate", "mean"]
    effect, control, margin, published = figure.panels[0].series
    assert effect.x == ("● a", "✕ b")
    assert effect.intervals() == [(0.3, 0.4, 0.5)] * 2
    assert (control.role, margin.y, published.x, published.y) == ("control", (0.05, 0.05), ("● a",), (0.88,))
    assert figure.panels[1].series[0].intervals() == [(None, 0.1, None)]
    assert figure.panels[1].series[2].y == (-0.05, 0.05)
    assert "◐ inconclusive" in figure.caption
    assert "○" not in figure.caption
    assert verdict_figure("nothing", [verdicts[3]]) is None
    with pytest.raises(ValueError, match="nothing was measured"):
        forest("f", [("x", verdicts[3])], of="subject", value="rate")


def test_an_open_interval_is_drawn_to_the_edge():
    assert Series("s", [1], [1], [float("-inf")], [float("inf")]).intervals() == [(None, 1.0, None)]

    def arrows(hi):
        panel = Panel("", "who", "what", (Series("s", ["a", "b"], [1.0, 2.0], [0.5, 1.5], [1.5, hi], "points"),))
        return drawing.svg(Figure("f", "t", (panel,))).count("<path")

    assert arrows(None) > arrows(2.5)


def test_a_page_that_has_the_library_takes_it_out():
    page = drawing.html(contest())
    small = interactive.without_library(page, "/static/a&b.js")
    assert small.count('<script src="/static/a&amp;b.js"></script>') == 1
    assert len(page) - len(small) > len(interactive.library())
    assert small.split("</script>", 1)[1].strip() == page.split("<!-- library -->", 1)[1].strip()
    assert interactive.without_library("<p>no figure</p>", "/x.js") is None


def test_every_cell_of_a_heatmap_has_its_value_and_the_colour_of_it():
    """The small library knows no heatmap: cells are bars. One without a value is left out; the ends and the middle have the scale's own colours."""
    heat = Heatmap("h", "x", "y", [[-2.0, None], [0.0, 2.0]], "v", x_ticks=("a<b", "c"))
    page = drawing.html(Figure("f", "title", (heat,)))
    drawn = json.loads(re.search(r'<script id="drawing" type="application/json">(.*?)</script>', page)[1])
    assert {trace["type"] for trace in drawn["data"]} == {"bar", "scatter"}
    bars = drawn["data"][0]
    assert bars["customdata"] == [["a&lt;b", 0, -2.0, ""], ["a&lt;b", 1, 0.0, ""], ["c", 1, 2.0, ""]]
    assert (bars["x"], bars["base"]) == ([0, 0, 1], [-0.5, 0.5, 0.5])
    assert [colour.lower() for colour in bars["marker"]["color"]] == [looks.SIGNED_SCALE[0], "#ffffff", looks.SIGNED_SCALE[-1]]


def test_a_marked_cell_is_outlined_on_the_page_too():
    """Caption and drawing agree: what a figure marks has a box around it, on paper and on the page."""

    def boxes(*mark):
        heat = Heatmap("h", "x", "y", [[0.0, 1.0], [2.0, 3.0]], "v", mark)
        return drawing.html(Figure("f", "title", (heat,))).count('"type":"rect"')

    assert boxes((1, 0)) == boxes() + 1
    assert boxes((1, 0), (0, 1)) == boxes() + 2
