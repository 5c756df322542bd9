"""Goes over a run folder: whether everything in it is there and as it was written.

    python -m experiments.check runs/estimate-1234
    python -m experiments.check runs/estimate-1234 --repair

Says of each file what is wrong and what becomes of it. --repair moves what is damaged into RUN/damaged/, deletes
nothing, and has the run forget it; the command that began the run then makes again what is missing, as it was. Exit
status 0: all is well, apart from what any crash leaves. 1: something is wrong. 2: the folder cannot be used.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from absl import flags

from experiments import folder, launch

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(folder)
flags.DEFINE_boolean("repair", False, "Mend what can be mended.")


def main(run: str) -> None:
    from lpe_jax import progress
    from lpe_jax.records.check import Check, held
    from lpe_jax.records.run import read_run
    from lpe_jax.reporting.text import printable

    where, again = Path(run), False
    with held(where, to_write=FLAGS.repair):
        found = Check(where)
        for finding in found.findings:
            cure = "" if finding.cure is None else f"; --repair: {finding.cure}"
            # Whoever made the folder named its files.
            print(printable(f"{'note' if finding.harmless else 'wrong'}: {finding.path} {finding.wrong}{cure}"))
        if FLAGS.repair and found.findings:
            again = any(finding.again for finding in found.findings)
            curable = any(finding.cure is not None for finding in found.findings)
            found.mend()
            found = Check(where)
            left = f", and {found.wrong} cannot be" if found.wrong else ""
            again = again and curable
            then = "; the command that began the run goes on with it" if again else ""
            print(f"repaired{left}{then}" if curable else "nothing of it can be mended")
            if again:
                progress.mark_stopped(where)
    said = f"{found.wrong} wrong" if found.wrong else "all is well"
    if found.well and read_run(where)["status"] != "finished":
        said, again = f"{said}; the run is not finished, and the command that began it goes on with it", True
    print(printable(f"{where}: {', '.join(found.there) or 'nothing drawn yet'}: {said}"))
    if again and (command := _command(where, read_run(where))):
        print(printable(f"  {command}"))
    sys.exit(1 if found.wrong else 0)


def _command(where: Path, record: dict | None) -> str:
    """What that command is, where the folder knows it."""
    program = "estimate" if record is None or "procedure" in record["settings"] else "sample"
    flagfile = where / "flags.txt"
    call = ["python", "-m", f"experiments.{program}", f"--flagfile={flagfile}", f"--out={where}"]
    return shlex.join(call) if flagfile.is_file() else ""


if __name__ == "__main__":
    launch.run(main)
