"""What a run shows of how it gets on, on a terminal and elsewhere, and what it writes for other programs."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from lpe_jax import live
from lpe_jax.errors import RunError
from lpe_jax.estimation.lpe import LPE
from lpe_jax.estimation.naive import Naive
from lpe_jax.judging.base import Meter
from lpe_jax.preemption import Stopped
from lpe_jax.progress import NAME, Progress
from lpe_jax.records.rollouts import RolloutStore
from lpe_jax.reporting.text import duration
from lpe_jax.types import Outcome
from tests.test_live import PROMPTS, FakeSampler, at_once, outcome_table


class Clock:
    """One that goes on when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def shown(self):
        """What can be seen: of each line what was written last."""
        seen = []
        for line in self.getvalue().split("\n"):
            cells = []
            for text in line.split("\r"):
                cells[: len(text)] = text
            seen.append("".join(cells).rstrip())
        return seen


@pytest.fixture
def clock():
    return Clock()


def begun(tmp_path, clock, stream, **more):
    progress = Progress(2, tmp_path / NAME, stream=stream, clock=clock, **more)
    progress.expect("drawing", ["a", "b"], 100, exact=False, later=20)
    for prompt_id in ("a", "b"):
        progress.ordered(prompt_id, 50)
    return progress


def draw(progress, clock, n=10, seconds=1.0, prompt_id="a"):
    clock.now += seconds
    progress.drawn(n, 7 * n)
    progress.handed_in(n)
    progress.judged(prompt_id, Outcome.COMPLIED, n // 2)
    progress.judged(prompt_id, Outcome.UNSCORED, n - n // 2)
    progress.busy(0.75)
    progress.tick()


def status(tmp_path):
    return json.loads((tmp_path / NAME).read_text())


def test_a_terminal_has_one_line(tmp_path, clock, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with begun(tmp_path, clock, stream) as progress:
        draw(progress, clock)
        assert stream.shown == ["0/2 prompts, 10 rollouts, 75 % of rows busy, 5 hits, 5 unscored"], "no speed yet"
        for _ in range(3):
            draw(progress, clock)
        assert stream.shown == [
            "0/2 prompts, 40 rollouts, 10/s, 70 tokens/s, 75 % of rows busy, judged 10/s, 20 hits, 20 unscored, "
            "at most about 18 s left"
        ]
        progress.say("a is done")
        assert stream.shown == [""] and capsys.readouterr().out == "a is done\n"
        draw(progress, clock, 0)
        assert stream.shown[0].startswith("0/2 prompts")
    assert stream.shown == [""], "nothing stays"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_has_what_matters(tmp_path, clock, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    progress = begun(tmp_path, clock, stream)
    for _ in range(2):
        draw(progress, clock)
    for _ in range(3):
        draw(progress, clock)
        (line,) = stream.shown
        assert len(line) < columns and line.startswith("0/2 prompts") and "left" in line


def test_a_line_is_not_drawn_too_often(tmp_path, clock):
    stream = Terminal()
    progress = begun(tmp_path, clock, stream)
    for _ in range(1000):
        draw(progress, clock, 1, 0.01)
    assert 40 <= stream.getvalue().count("\r") <= 55


def test_elsewhere_there_is_a_plain_line_a_minute(tmp_path, clock):
    stream = io.StringIO()
    with begun(tmp_path, clock, stream) as progress:
        for _ in range(150):
            draw(progress, clock, 0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in stream.getvalue() and lines[0].startswith("0/2 prompts")


def test_a_process_that_is_not_the_first_shows_and_writes_nothing(tmp_path, clock):
    stream = Terminal()
    with Progress(2, None, stream=stream, clock=clock) as progress:
        progress.expect("drawing", ["a"], 100, exact=True)
        draw(progress, clock)
    assert stream.getvalue() == "" and list(tmp_path.iterdir()) == []


def test_what_the_judge_costs_is_shown(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream, meter = Terminal(), Meter(1200, 10, 10)
    meter.failures["429"] = 3
    progress = begun(tmp_path, clock, stream, spent=lambda: (meter, 0.456))
    draw(progress, clock)
    progress.handed_in(5)
    draw(progress, clock, 0)
    assert "5 wait for a verdict, " in stream.shown[0] and "1,200 calls, 3 x 429, 0.46 spent" in stream.shown[0]
    clock.now += 5
    progress.tick()
    now = status(tmp_path)
    assert (now["judge_calls"], now["judge_failures"], now["judge_cost"], now["waiting"]) == (1200, 3, 0.456, 5)


def test_the_time_left_is_that_of_the_work_left(tmp_path, clock):
    progress = begun(tmp_path, clock, io.StringIO())
    assert progress.left() == (220, True) and progress.status()["eta_seconds"] is None, "no speed is known yet"
    draw(progress, clock, 10)
    assert progress.left() == (210, True) and progress.status()["eta_seconds"] is None, "nor by the first ones"
    draw(progress, clock, 40, seconds=2)
    # The most there can be, 2 x 100 and 20 later, less the 50, at 20 a second.
    assert progress.left() == (170, True) and progress.status()["eta_seconds"] == round(170 / 20)
    progress.finished("a")
    # The other one as many as that, and it has asked for more already.
    assert progress.left() == (50 + 20, False)
    draw(progress, clock, 30, prompt_id="b")
    assert progress.left() == (20 + 20, False)
    progress.finished("b")
    assert progress.left() == (20, False)
    progress.expect("checking", ["a", "b"], 10, exact=True)
    assert progress.left() == (20, False) and progress.status()["prompts_done"] == 2


def test_a_sweep_that_judges_prompts_at_their_end(tmp_path, clock):
    """Then the time left is that of drawing."""
    progress = Progress(3, None, clock=clock)
    progress.expect("drawing", ["a", "b"], 100, exact=True, done=1)
    progress.drawn(10, 100)
    progress.tick()
    clock.now += 10
    progress.drawn(50, 500)
    assert progress.status()["eta_seconds"] == 140 / 5 and progress.status()["rollouts_left"] == 200
    progress.drawn(40, 400)
    progress.judged("a", Outcome.REFUSED, 100)
    progress.finished("a")
    assert progress.status()["eta_seconds"] == round(100 / 9) and progress.status()["prompts_done"] == 2


def test_time_to_load_and_to_compile_is_no_part_of_a_speed(tmp_path, clock):
    progress = begun(tmp_path, clock, io.StringIO())
    clock.now += 300
    for _ in range(4):
        draw(progress, clock)
    assert progress.status()["rollouts_per_second"] == 10 and progress.status()["eta_seconds"] == 180 / 10
    progress.expect("checking", ["a", "b"], 30, exact=True)
    clock.now += 300
    progress.tick()
    assert progress.status()["eta_seconds"] is None
    for _ in range(4):
        draw(progress, clock)
    assert progress.status()["rollouts_per_second"] == 10 and progress.status()["eta_seconds"] == 2


def test_stored_rollouts_make_nothing_quicker(tmp_path, clock):
    progress = begun(tmp_path, clock, io.StringIO())
    progress.found(30)
    progress.handed_in(30)
    progress.judged("a", Outcome.REFUSED, 30)
    progress.tick()
    for _ in range(3):
        draw(progress, clock, 10)
    now = progress.status()
    assert now["rollouts_per_second"] == now["judged_per_second"] == 10
    assert (now["rollouts"], now["rollouts_stored"], now["judged"], now["rollouts_left"]) == (60, 30, 60, 160)


def test_speeds_are_of_the_last_minute(tmp_path, clock):
    progress = begun(tmp_path, clock, io.StringIO())
    for _ in range(100):
        draw(progress, clock, 10)
    for _ in range(100):
        draw(progress, clock, 2)
    assert progress.status()["rollouts_per_second"] == 2
    progress.end("finished")
    assert progress.status()["rollouts_per_second"] == 6, "of all the time, now that it has ended"


ENDS = [
    (None, "finished", None),
    (Stopped(), "stopped", None),
    (KeyboardInterrupt(), "stopped", None),
    (RunError("disk is full"), "failed", "disk is full"),
    (ValueError("whatever a prompt says"), "failed", "ValueError"),
]


@pytest.mark.parametrize(("error", "state", "words"), ENDS, ids=lambda value: type(value).__name__)
def test_how_it_ended_is_in_the_file(tmp_path, clock, error, state, words):
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, begun(tmp_path, clock, io.StringIO()) as progress:
        draw(progress, clock)
        assert status(tmp_path)["state"] == "running"
        if error is not None:
            raise error
    now = status(tmp_path)
    assert (now["state"], now["error"], now["rollouts"]) == (state, words, 10)
    progress.tick()
    clock.now += 100
    progress.tick()
    assert status(tmp_path) == now, "it is not running again"
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_disk_that_is_full_stops_nothing(tmp_path, clock):
    (tmp_path / "file").write_text("")
    with Progress(1, tmp_path / "file" / NAME, stream=io.StringIO(), clock=clock):
        clock.now += 10


def test_the_file_is_written_every_other_second(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr("lpe_jax.progress.write_json", lambda path, value: written.append(value["rollouts"]))
    progress = begun(tmp_path, clock, io.StringIO())
    for _ in range(100):
        draw(progress, clock, 1, 0.1)
    assert 5 <= len(written) <= 6


@pytest.mark.parametrize("procedure", [Naive(30), LPE(n_search=4, n_fit=10, alphas=(0.9, 0.6, 0.3))], ids=str)
def test_the_driver_tells_of_all_it_does(tmp_path, procedure):
    """Counts of a run against its results; then of the same run from what is stored, and of a check beside it."""
    sampler = FakeSampler(procedure, outcome_table(procedure))
    for part in ("drawn", "stored"):
        progress = Progress(len(PROMPTS), None)
        progress.expect("drawing", [p.id for p in PROMPTS], procedure.most_rollouts, exact=procedure.fixed)
        store = RolloutStore(tmp_path)
        found = list(live.run(procedure, PROMPTS, sampler, at_once, store, watch=progress))
        now, total = progress.status(), sum(f.rollouts for f in found)
        assert now["rollouts"] == now["judged"] == total
        assert now["rollouts_stored"] == (0 if part == "drawn" else total)
        assert now["tokens"] == (sum(f.tokens for f in found) if part == "drawn" else 0)
        assert now["hits"] == sum(f.outcomes[Outcome.COMPLIED] for f in found)
        assert now["unscored"] == sum(f.outcomes[Outcome.UNSCORED] for f in found)
        assert (now["prompts_done"], now["waiting"], now["rollouts_left"]) == (len(PROMPTS), 0, 0)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (300, "5 min"), (9000, "2.5 h"), (300_000, "3.5 days")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_page_names_every_field(tmp_path, clock):
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    told = set(re.findall(r"`(\w+)`", page[page.index("### status.json") :]))
    assert begun(tmp_path, clock, io.StringIO()).status().keys() <= told
