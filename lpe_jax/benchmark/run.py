"""One workload from start to end: models built, parity checked, all warmed up, rounds run, what was found returned."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from lpe_jax.benchmark.rounds import Contestant, Standing, Turn, fastest, standings, take_turns
from lpe_jax.errors import UserError
from lpe_jax.machine import cores

if TYPE_CHECKING:
    from lpe_jax.benchmark.peers import TwoModels
    from lpe_jax.benchmark.workloads import Workload

# Kinds of contestants.
OURS, LOOP, OTHER = "ours", "HF loop", "other"
REFERENCE = "reference"
# Ways of writing the loop, keys of peers.LOOPS.
LOOPS = ("dynamic", "per-row", "preallocated", "static", "compiled")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      modes: how our pair keeps its weights, keys of engine.MODES.
      peers: whether torch peers are run.
      loops: which ways of writing the loop are tried, of LOOPS.
      finalists: so many of them enter the rounds, those that were fastest over one batch.
      compile_limit: seconds that torch.compile may take.
      generate: whether transformers' own `generate` is among the peers; it takes several times as long as a loop.
    """

    rounds: int = 3
    modes: tuple[str, ...] = ("ablated",)
    peers: bool = True
    loops: tuple[str, ...] = LOOPS
    finalists: int = 2
    compile_limit: int = 240
    generate: bool = True
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found of one workload.

    Attributes:
      reference: the contestant that ratios are to.
      trials: seconds of one batch by each way of writing the loop; a sentence where it did not run.
      notes: remarks for the table, one sentence each.
    """

    workload: str
    about: str
    unit: str
    reference: str
    standings: tuple[Standing, ...]
    turns: tuple[Turn, ...]
    trials: dict[str, float | str]
    notes: tuple[str, ...]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure_apart(name: str, options: Options) -> Found:
    """`measure` in a process of its own: how many devices a CPU is cannot be changed once JAX runs.

    Raises:
      UserError: as `measure`, or the process did not live to its end.
    """
    # An accelerator's memory is shared with the peers.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, name, options).result()
        except BrokenProcessPool:
            raise UserError(
                f"{name}: its process was ended from outside, most likely as memory ran out; choose fewer --modes, "
                "--nopeers, or a smaller one of --workloads"
            ) from None


def measure(name: str, options: Options) -> Found:
    """Builds the workload and lets all contestants take turns.

    Raises:
      UserError: no such workload, or our logits are not those of the peers.
    """
    import jax

    from lpe_jax.benchmark import ceiling, engine, workloads
    from lpe_jax.loading import make_mesh, split_cpu

    if name in workloads.EMBEDDED:
        split_cpu(workloads.EMBEDDED_ROWS)
    workload = workloads.build(name, options.quick)
    mesh = make_mesh(1) if workload.split else None
    if unknown := [mode for mode in options.modes if mode not in engine.MODES]:
        raise UserError(f"--modes={unknown[0]} is none of {', '.join(engine.MODES)}")
    pairs = {mode: engine.pair_of(workload, mode) for mode in options.modes}
    samplers = {mode: engine.sampler_of(workload, pair, mesh) for mode, pair in pairs.items()}

    contestants, trials = [], {}
    notes = [f"JAX on {jax.device_count() if mesh else 1} x {jax.devices()[0].device_kind}"]
    if workload.naive:
        alone = next(iter(samplers.values())).alone
        contestants = [_ours("plain rows of the original", workload, alone, kind=REFERENCE)]
        for words, decides in (("prefix tree", False), ("prefix tree, stops once decided", True)):
            run = functools.partial(engine.draw_tree, pairs[options.modes[0]], workload, decides=decides)
            contestants.append(Contestant(words, OURS, run))
    elif workload.alone:
        alone = next(iter(samplers.values())).alone
        contestants = [_ours("our engine, original alone", workload, alone, kind=REFERENCE)]
    if not workload.naive:
        contestants += [_ours(f"our engine, {mode}", workload, sampler) for mode, sampler in samplers.items()]
        mode, pair = next(iter(pairs.items()))
        if pair.one_head:
            without = engine.sampler_of(workload, pair, mesh, sums=False)
            contestants.append(_ours(f"our engine, {mode}, no sums", workload, without))
        if samplers[mode].kernel is not None:
            by_xla = dataclasses.replace(samplers[mode], attention="einsum")
            contestants.append(_ours(f"our engine, {mode}, attention by XLA", workload, by_xla))
        if options.peers and not workload.alone:
            peers, trials, of_peers = _peers(workload, pairs, options)
            contestants += peers
            notes += of_peers

    for contestant in contestants:
        if contestant.kind in (OURS, REFERENCE):
            contestant.run(_WARM_UP)
    turns = take_turns(contestants, options.rounds)
    reference = _reference(contestants, turns, workload.unit)
    return Found(
        workload=name,
        about=workload.about,
        unit=workload.unit,
        reference=reference,
        standings=tuple(standings(contestants, turns, reference, workload.unit)),
        turns=tuple(turns),
        trials=trials,
        notes=tuple(notes),
        facts=ceiling.facts(next(iter(pairs.values())), workload, turns) if name in workloads.GPU else {},
    )


# The number of a round that is never counted.
_WARM_UP = 1_000


def _ours(name: str, workload: Workload, sampler: Any, kind: str = OURS) -> Contestant:
    from lpe_jax.benchmark import engine

    return Contestant(name, kind, functools.partial(engine.draw, sampler, workload))


def _reference(contestants: Sequence[Contestant], turns: Sequence[Turn], unit: str) -> str:
    """Who ratios are to: the one marked so, else the fastest loop, else the first."""
    marked = [c.name for c in contestants if c.kind == REFERENCE]
    loops = [c.name for c in contestants if c.kind == LOOP]
    return fastest(turns, marked or loops or [contestants[0].name], unit)


def _peers(workload: Workload, pairs: dict, options: Options) -> tuple[list[Contestant], dict, list[str]]:
    """The peers that enter the rounds, what each way of writing the loop took for one batch, and remarks."""
    from lpe_jax.benchmark import peers

    two = peers.TwoModels(workload)
    notes = [_parity(workload, pairs, two)]
    notes.append(f"the loop draws by {two.pick_draw()}, the faster of {' and '.join(d.__name__ for d in peers.DRAWS)}")
    if peers.device() == "cpu":
        notes.append(f"torch uses {two.pick_threads(cores())} of {cores()} cores, which was fastest")
    trials: dict[str, float | str] = {}
    tried = [peers.LOOPS[key] for key in options.loops]
    for loop in tried:
        with limited(options.compile_limit if loop.compiled else 0) as ran:
            two.run(loop, two.first_batch(_WARM_UP), None if loop.compiled else 2)
        trials[loop.name] = _trial(two, loop) if ran.failed is None else ran.failed
    if all(isinstance(took, str) for took in trials.values()):
        raise UserError(f"--loops={','.join(options.loops)}: none of them runs here; name others")
    timed = sorted((name for name, took in trials.items() if not isinstance(took, str)), key=trials.get)
    chosen = [loop for loop in tried if loop.name in timed[: options.finalists]]
    contestants = [
        Contestant(loop.name, LOOP, lambda i, loop=loop: two.run(loop, workload.requests(i))) for loop in chosen
    ]
    if workload.eos_ids:
        drops = peers.Loop("preallocated", drops=True)
        contestants.append(Contestant(drops.name, OTHER, lambda i: two.run(drops, workload.requests(i))))
    if options.generate:
        contestants.append(
            Contestant("HF generate, CFG processor", OTHER, lambda i: two.generate(workload.requests(i)))
        )
    return contestants, trials, notes


def _trial(two: TwoModels, loop: Any) -> float:
    """Seconds of one batch."""
    (turn,) = take_turns([Contestant(loop.name, LOOP, lambda i: two.run(loop, two.first_batch(i)))], 1)
    return turn.seconds


def _parity(workload: Workload, pairs: dict, two: TwoModels) -> str:
    """Checks that all compute the same models; how far apart they are, in words.

    Raises:
      UserError: further than float32 or bfloat16 explains.
    """
    import numpy as np

    from lpe_jax.benchmark import engine

    prompt = next(iter(workload.prompts.values()))
    theirs, furthest = two.logits(prompt), 0.0
    for mode, pair in pairs.items():
        apart = float(np.abs(engine.logits(pair, prompt) - theirs).max())
        if not apart <= engine.TOLERANCE[pair.dtype.name]:
            raise UserError(f"{workload.name}: our logits ({mode}) and transformers' differ by {apart:.2g}; no timing")
        furthest = max(furthest, apart)
    return f"logits of a prompt differ by at most {furthest:.1g}"


@dataclasses.dataclass
class Ran:
    """How something went: failed is a sentence, or None."""

    failed: str | None = None


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[Ran]:
    """Says of what runs within whether it fails or takes longer than so many seconds; 0 is no limit, and errors pass.

    Only in a process's main thread, as it takes a signal.
    """
    ran = Ran()
    if not seconds:
        yield ran
        return
    old, began = signal.signal(signal.SIGALRM, _too_long), time.monotonic()
    signal.alarm(seconds)
    try:
        yield ran
    except Exception as error:  # whatever a compiler may raise, and what it may turn our own into
        late = time.monotonic() - began >= seconds
        ran.failed = f"did not compile within {seconds} s" if late else f"failed: {type(error).__name__}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _too_long(signum: int, frame: Any) -> None:
    raise TimeoutError


def check_torch(importer: Callable[[str], Any]) -> None:
    """Raises UserError where what the peers need is not installed; importer is importlib.import_module."""
    for name in ("torch", "transformers"):
        try:
            importer(name)
        except ImportError:
            raise UserError(
                f"{name} is not installed, and the peers need it: pip install 'lpe_jax[test]', or ask for --nopeers"
            ) from None
