"""Goes over a run folder: whether everything in it is there and as it was written.

    python -m experiments.check runs/estimate-1234
    python -m experiments.check runs/estimate-1234 --repair

Says of each file what is wrong and what becomes of it. --repair moves what is damaged into RUN/damaged/, deletes
nothing, and has the run forget it; the command that began the run then makes again what is missing, as it was. Exit
status 0: all is well, apart from what any crash leaves. 1: something is wrong. 2: the folder cannot be used.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_boolean("repair", False, "Mend what can be mended.")


def main(run: str) -> None:
    from lpe_jax.records.check import Check, held
    from lpe_jax.records.run import read_run
    from lpe_jax.reporting.text import printable

    folder = Path(run)
    with held(folder, to_write=FLAGS.repair):
        found = Check(folder)
        for finding in found.findings:
            cure = "" if finding.cure is None else f"; --repair: {finding.cure}"
            # Whoever made the folder named its files.
            print(printable(f"{'note' if finding.harmless else 'wrong'}: {finding.path} {finding.wrong}{cure}"))
        if FLAGS.repair and found.findings:
            again = any(finding.again for finding in found.findings)
            curable = any(finding.cure is not None for finding in found.findings)
            found.mend()
            found = Check(folder)
            left = f", and {found.wrong} cannot be" if found.wrong else ""
            then = "; the command that began the run goes on with it" if again else ""
            print(f"repaired{left}{then}" if curable else "nothing of it can be mended")
    said = f"{found.wrong} wrong" if found.wrong else "all is well"
    if found.well and read_run(folder)["status"] != "finished":
        said += "; the run is not finished, and the command that began it goes on with it"
    print(printable(f"{folder}: {', '.join(found.there) or 'nothing drawn yet'}: {said}"))
    sys.exit(1 if found.wrong else 0)


if __name__ == "__main__":
    launch.run(main, argument="RUN")
