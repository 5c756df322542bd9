"""Chat templates and prompt files that somebody made to do harm: a sentence, in bounded time and memory."""

import io
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest

from lpe_jax.errors import PromptError
from lpe_jax.prompts import chat, sandbox
from lpe_jax.prompts.readers import read_prompts
from lpe_jax.records.prompts import write_prompts
from lpe_jax.reporting.figures import figure_file
from lpe_jax.types import Message, Prompt
from tests.helpers import save_tokenizer

ASK = Prompt("a", (Message("user", "Fold a boat."),))
CANARY = "canary-5f2c"
MOST_BYTES = 250e6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return chat.load_tokenizer(folder)


@pytest.fixture(autouse=True)
def canary(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", CANARY)


def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


class bounded:
    """A block that grows by MOST_BYTES and takes so many seconds at most."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        self.watched = os.access("/proc/self/clear_refs", os.W_OK)
        if self.watched:
            Path("/proc/self/clear_refs").write_text("5")  # the mark of the peak begins anew
            self.before = peak()
        self.began = time.perf_counter()

    def __exit__(self, *exc):
        assert time.perf_counter() - self.began < self.seconds
        assert not self.watched or peak() - self.before < MOST_BYTES


def rendered(tokenizer, template, seconds=30.0):
    """The text a template makes of a prompt, or the sentence that refuses it."""
    tokenizer.chat_template = template
    with bounded(seconds):
        try:
            return tokenizer.decode(chat.render(tokenizer, ASK, thinking=True)), None
        except PromptError as error:
            message = str(error)
            assert message.startswith("prompt 'a': the ") and message.isprintable() and len(message) < 500
            assert CANARY not in message
            return None, message


def test_what_is_harmless_is_rendered(tokenizer):
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content * 2 }}{% endfor %}"
    )
    assert rendered(tokenizer, template + "{{ ns.n }}{{ eos_token }}") == ("Fold a boat.Fold a boat.1<|im_end|>", None)


# Each of them is a way out of a sandbox that somebody has gone.
WALKS = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ [''|attr('__class__')]|join }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ messages|map(attribute='0.__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages|sort(attribute='__class__') }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ ''|xmlattr }}{{ {'__class__': 1}|xmlattr }}{{ self.__class__ }}",
    "{{ lipsum.__globals__.os.environ }}",
    "{{ lipsum['__globals__']['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__closure__[0].cell_contents }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ dict.__class__.__init__.__globals__ }}",
    "{{ range.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ (messages|map('upper')).gi_frame }}",
    "{{ (messages|map('upper')).gi_frame.f_builtins }}",
    "{% macro f() %}{% endmacro %}{{ f.__globals__ }}",
    "{% macro f() %}{{ caller.__globals__ }}{% endmacro %}{% call f() %}{% endcall %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterator.__class__ }}{% endfor %}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(lipsum) }}",
    "{{ '{x.__globals__}'.format(x=lipsum) }}",
    "{{ '{x.__globals__}'.format_map({'x': lipsum}) }}",
    "{{ '%(x)s' % {'x': lipsum.__globals__} }}",
    "{{ ('{0.__globals__}'|attr('format'))(lipsum) }}",
    "{{ ('{0.__globals__}'.format)(lipsum) }}",
    "{{ [lipsum]|map('format', '{0.__globals__}')|list }}",
    "{{ ['{0.__globals__}']|map('format', lipsum)|list }}",
    "{{ '{0.__globals__}'|format(lipsum) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 1}) }}",
    "{{ messages.__class__.pop(messages) }}",
    "{% set x = messages.clear() %}",
    "{% import '/etc/passwd' as x %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% from 'os' import environ %}{{ environ }}",
    "{{ config }}{{ request.environ }}{{ os.environ }}{{ open('/etc/passwd') }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ url_for.__globals__ }}",
    "{{ ''.join.__self__.__class__ }}",
    "{{ (1).__class__.__base__ }}",
    "{{ eval('1') }}{{ exec('1') }}{{ __import__('os') }}{{ __builtins__ }}",
    "{% generation %}{{ ''.__class__ }}{% endgeneration %}",
    "{{ environment }}{{ self._environment.overlay }}",
]
SHOWN = re.compile(rf"{CANARY}|root:|<class|<function|<module|<built-in|__|\bos\b|environ|0x[0-9a-f]{{6}}|gi_frame")


@pytest.mark.parametrize("template", WALKS)
def test_walks_through_attributes_lead_nowhere(tokenizer, template):
    text, _ = rendered(tokenizer, template)
    assert text is None or not SHOWN.search(text), text


BOMBS = {
    "a product of text": "{{ 'a' * 10**10 }}",
    "a product of a list": "{{ [0] * 10**10 }}",
    "a product of what is made": "{% set x = 'a' * 10**6 %}{{ (x * 10**6)|length }}",
    "a width in a format": "{{ '%010000000000d' % 1 }}",
    "a width in another": "{{ '{:>10000000000}'.format(1) }}",
    "a width of a filter": "{{ 'a'|center(10**10) }}",
    "a width of a method": "{{ 'a'.ljust(10**10) }}{{ '1'.zfill(10**10) }}",
    "an indent": "{{ ('a\\n' * 10**6)|indent(10**6) }}",
    "twice as much, forty times": (
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    ),
    "a replacement of each": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "a join": "{{ range(100000)|join('a' * 10**6) }}",
    "a list of lists": "{{ (range(99999)|list * 99999)|length }}",
    "a number": "{{ (10 ** (10 ** 7)) * (10 ** (10 ** 9)) }}",
    "words without end": "{{ lipsum(n=10**7, min=10**4) }}",
    "a range": "{{ range(10**10)|list }}",
    "a range of a step": "{% for i in range(0, 10**12, 10) %}{% endfor %}",
    "much to read": "{% for i in range(90000) %}{{ messages[0].content * 1000 }}{% endfor %}",
    "rounding to so many places": "{{ 1.5|round(10**10) }}{{ 'a' * 2**33 }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls its caller": "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{{ f() }}{% endcall %}",
    "a loop into itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "conditions": "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "much to say": "{{ 1 }}" * 200_000,
    "sums": "{{ " + "+".join(["1"] * 100_000) + " }}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_end_in_a_sentence(tokenizer, monkeypatch, kind):
    rendered(tokenizer, "{{ 1 }}")  # starting a child is not what is timed
    monkeypatch.setattr(chat, "RENDER_SECONDS", 1.5)
    text, message = rendered(tokenizer, BOMBS[kind])
    assert text is None and "the chat template" in message
    # What comes after it is served.
    assert rendered(tokenizer, "{{ messages[0].content }}") == ("Fold a boat.", None)


LOOPS = {
    "in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "in one operation": "{{ 9 ** (9 ** 9) }}",
    "in a sort": "{% for i in range(99999) %}{% set x = range(99999)|sort(reverse=true) %}{% endfor %}",
}


@pytest.mark.parametrize("kind", LOOPS)
def test_time_without_end_is_cut_off(tokenizer, monkeypatch, kind):
    assert rendered(tokenizer, "{{ 1 }}") == ("1", None)
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.3)
    child = sandbox._child._process
    _, message = rendered(tokenizer, LOOPS[kind], seconds=10.0)
    assert message == "prompt 'a': the chat template did not finish within 0.3 s"
    # Nothing of it goes on.
    assert child.poll() is not None and not [t for t in threading.enumerate() if t.name == "tokenizer"]


def test_the_child_is_confined(tokenizer):
    """It has the limits it is to have, none of our environment, and ends with its input."""
    rendered(tokenizer, "{{ 1 }}")
    process = sandbox._child._process
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    for name, most in (("Max address space", sandbox.MEMORY_BYTES), ("Max file size", 0), ("Max core file size", 0)):
        assert re.search(rf"^{name} +{most} +{most} ", limits, re.MULTILINE), limits
    assert CANARY.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
    process.stdin.close()
    process.wait(timeout=30)


def test_a_child_that_died_is_replaced(tokenizer):
    rendered(tokenizer, "{{ 1 }}")
    sandbox._child._process.kill()
    sandbox._child._process.wait()
    assert rendered(tokenizer, "{{ 2 }}") == ("2", None)


def test_a_pattern_that_takes_for_ever_is_given_up(tmp_path):
    """A tokenizer's own patterns are programs, too, and the library panics where it gives one up."""
    save_tokenizer(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    slow = {"type": "Split", "pattern": {"Regex": "(a|a|a)+$"}, "behavior": "Isolated", "invert": False}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [slow, raw["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = chat.load_tokenizer(tmp_path)
    tokenizer.chat_template = "{{ 'a' * 20000 }}b"
    with bounded(60.0), pytest.raises(PromptError, match=r"^prompt 'a': the tokenizer (failed|did not finish)"):
        chat.render(tokenizer, ASK, thinking=True)


# Prompt files.


def refused(folder, name, data, **options):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    with bounded(30.0), pytest.raises(PromptError) as caught:
        read_prompts(path, **options)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 1500, message
    return message


HEADER = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("p.jsonl", "[" * 10_000_000, "line 1: more than 4194304 characters"),
        ("p.jsonl", "[" * 4_000_000, "nested too deeply"),
        ("p.jsonl", '{"a":' * 800_000, "nested too deeply"),
        ("p.jsonl", '{"id": "a", "prompt": "x", "n": ' + "9" * 4_000_000 + "}", "not usable JSON"),
        ("p.jsonl", '{"id": "a", "prompt": "x", "n": [' + "{}," * 1_000_000 + "{}]}", None),
        ("p.jsonl", '{"id": "a", "prompt": "endless' + "x" * 5_000_000, "more than 4194304 characters"),
        ("p.jsonl", '{"id": "a", "prompt": "' + "x" * 200_000 + '"}', "a turn of 200000 characters"),
        ("p.jsonl", '{"id": "a", "prompt": "' + "\\u0000" * 9 + '"}', "a NUL"),
        ("p.jsonl", '{"id": "a", "prompt": "' + "\\ud83d" * 9 + '"}', "half of a surrogate pair"),
        ("p.jsonl", '{"id": "a", "prompt": "\ud83d"}', "is not UTF-8"),
        ("p.jsonl", '{"id": "' + "i" * 10_000 + '", "prompt": "x"}', "must be 1 to 256 printable characters"),
        ("p.jsonl", '{"id": "\\u0000", "prompt": "x"}', "printable characters"),
        ("p.jsonl", '{"id": "\\u202e", "prompt": "x"}', "printable characters"),
        ("p.jsonl", '{"id": "a\\nb", "prompt": "x"}', "printable characters"),
        ("p.csv", "," * 10_000_000, "line 1: more than 4194304 characters"),
        ("p.csv", "," * 4_000_000, "column '' appears more than once"),
        ("p.csv", HEADER + "," * 4_000_000, "4000001 cells under a header of 6 columns"),
        ("p.csv", HEADER + '"\n",' * 2_000_000, "line 2: more than 4194304 characters"),
        ("p.csv", HEADER + '"' + "x" * 10_000_000, "more than 4194304 characters"),
        ("p.csv", HEADER + '"' + "x\n" * 1_000_000, "field limit"),
        ("p.csv", HEADER + "a\0", "a NUL byte"),
        ("p.txt", "x" * 10_000_000, "line 1: more than 4194304 characters"),
        ("p.txt", b"\0" * 10_000_000, "a NUL byte"),
        ("p.txt", b"\xed\xa0\x80", "is not UTF-8"),
        ("p.txt", "\n" * 10_000_000, "no prompts"),
    ],
)
def test_files_without_end_or_sense(tmp_path, name, data, part):
    if part is None:  # large, and yet a prompt
        (tmp_path / name).write_text(data)
        with bounded(30.0):
            assert [prompt.id for prompt in read_prompts(tmp_path / name)] == ["a"]
    else:
        assert part in refused(tmp_path, name, data)


def test_there_may_be_only_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr("lpe_jax.prompts.readers.MAX_PROMPTS", 1000)
    assert "line 1001: more than 1000 prompts" in refused(tmp_path, "p.txt", "a\n" * 1001)
    (tmp_path / "p.txt").write_text("a\n" * 1000)
    assert len(read_prompts(tmp_path / "p.txt")) == 1000


def test_no_file_of_that_name(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    (tmp_path / "p.csv").symlink_to("/dev/zero")
    (tmp_path / "p.jsonl").symlink_to(tmp_path / "p.jsonl")
    for name in ("p.txt", "p.csv", "p.jsonl"):
        with bounded(10.0), pytest.raises(PromptError, match=r"name a prompt file|cannot be read"):
            read_prompts(tmp_path / name)


# Ids that are names elsewhere.
IDS = [
    *("../x", "../../../../etc/passwd", "/etc/passwd", "~/x", "..", ".", "x/..", "x/../../y", "./.lock", "run.json"),
    *("C:\\x", "..\\x", "\\\\host\\share", "CON", "con", "NUL.txt", "aux", "COM1", "a:b", "/dev/null", "a|b", "$(id)"),
    *(
        "a*b?",
        "-rf",
        "--out=x",
        "%2e%2e%2fx",
        "x" * 256,
        "é" * 256,
        "A",
        "a",
        "ß",
        "ss",
        "ﬁ",
        "fi",
        "`id`",
        ";id",
        "a b",
    ),
]


def test_ids_stay_in_the_run_folder(tmp_path):
    """Files are named for prompts by letters and digits and a hash; other records hold an id as text."""
    folder = tmp_path / "run"
    folder.mkdir()
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": name, "prompt": "Sing."}) + "\n" for name in IDS))
    prompts = read_prompts(path)
    assert [prompt.id for prompt in prompts] == IDS
    files = [figure_file(prompt.id, folder, suffix) for prompt in prompts for suffix in (".svg", ".png")]
    assert all(file.parent == folder and re.fullmatch(r"path-[a-z0-9-]{8,60}\.(svg|png)", file.name) for file in files)
    assert len({file.name.casefold() for file in files}) == len(files)
    for file in files:
        file.touch()
    write_prompts(folder, prompts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.jsonl", "run"]
    assert not [p for p in folder.rglob("*") if p.is_symlink() or p.is_dir()]
    text = io.StringIO()
    print(*(prompt.id for prompt in prompts), file=text)
    assert text.getvalue().strip().isprintable()
