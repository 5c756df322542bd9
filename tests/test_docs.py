"""What the documents claim of files and flags is there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "BUILD.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
PROGRAMS = (
    *("benchmark", "check", "estimate", "evaluate", "forecast", "judge", "plan", "report", "sample", "train_tiny"),
)


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_flags_in_the_documents_exist():
    helps = {
        program: subprocess.run(
            [sys.executable, "-m", f"experiments.{program}", "--helpfull"], cwd=ROOT, capture_output=True, text=True
        ).stdout
        for program in PROGRAMS
    }
    known = flags_of("".join(helps.values()))
    for document in DOCUMENTS:
        text = document.read_text()
        for program, flags in re.findall(r"experiments\.(\w+)((?:[ \\\n]+--\S+)*)", text):
            assert program in helps, f"{document.name}: experiments.{program}"
            own = flags_of(helps[program])
            for flag in re.findall(r"--(\w+)", flags):
                assert flag in own, f"{document.name}: --{flag} of {program}"
        for flag in re.findall(r"`--(\w+)", text):
            assert flag in known, f"{document.name}: --{flag}"


def flags_of(text: str) -> set[str]:
    """The flags that --helpfull lists, booleans in both their spellings."""
    found = re.findall(r"--(\[no\])?(\w+)", text)
    return {name for _, name in found} | {f"no{name}" for no, name in found if no} | {"help"}


def test_nothing_is_left_to_fill_in():
    for document in DOCUMENTS:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME", document.read_text()), document.name
