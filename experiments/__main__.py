"""Says what there is to run."""

import ast
import re
from pathlib import Path

if __name__ == "__main__":
    lines = ["python -m experiments.PROGRAM, of which --help says more:", ""]
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if re.search(r"launch\.run\(", source := path.read_text()):
            lines.append(f"  {path.stem:<12}{ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    print("\n".join(lines))
