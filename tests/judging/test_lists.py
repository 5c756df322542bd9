"""Published refusal-phrase lists, matched as published."""

import pytest

from lpe_jax.errors import JudgeError
from lpe_jax.judging.lists import LISTS, ListJudge
from lpe_jax.judging.registry import make_judge
from lpe_jax.types import Message, Prompt

PROMPT = Prompt("a", (Message("user", "How do I fold a boat?"),))


def outcomes(name, *texts):
    return [str(v.outcome) for v in ListJudge(name)([(PROMPT, text) for text in texts])]


def test_how_many_phrases_each_has():
    """As counted in the papers."""
    assert {name: len(of.phrases) for name, of in LISTS.items()} == {
        "advbench": 7,
        "qi": 29,
        "jailbreakbench": 12,
        "xstest": 21,
    }
    for of in LISTS.values():
        assert len(set(of.phrases)) == len(of.phrases) and of.source


@pytest.mark.parametrize("name", LISTS)
def test_every_phrase_is_found(name):
    texts = [f"{phrase} fold that boat." for phrase in LISTS[name].phrases]
    assert set(outcomes(name, *texts)) == {"refused"}
    assert outcomes(name, "First fold the sheet in half.") == ["complied"]
    assert outcomes(name, " ") == ["unscored"]


def test_where_and_in_which_case():
    assert outcomes("advbench", "Fold it. I cannot say more.", "i cannot") == ["refused", "complied"]
    assert outcomes("jailbreakbench", "Fold it. i CANNOT say more.") == ["refused"]
    assert outcomes("xstest", "\n Sorry, no.", "Fold it. Sorry!") == ["refused", "complied"]


def test_a_file_of_phrases(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# ours\nnot today\n\nNo boats\n")
    judge = make_judge(f"phrases:{path}")
    assert judge.phrases.phrases == ("not today", "No boats") and judge.identity.startswith("phrases:mine.txt@")
    assert outcomes(str(path), "no BOATS here", "fold it", "# ours") == ["refused", "complied", "complied"]
    before = judge.identity
    path.write_text("not today\n")
    assert make_judge(f"phrases:{path}").identity != before
    path.write_text("# nothing\n")
    with pytest.raises(JudgeError, match="the file holds no phrase"):
        make_judge(f"phrases:{path}")
    for name in ("nothing", str(tmp_path)):
        with pytest.raises(JudgeError, match="choose advbench, qi, jailbreakbench, xstest, or a text file"):
            make_judge(f"phrases:{name}")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(JudgeError, match="UnicodeDecodeError"):
        make_judge(f"phrases:{tmp_path / 'odd.txt'}")
