"""The peers draw from the very distribution that our engine draws from, and count tokens as it does."""

import itertools

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from lpe_jax.benchmark import engine, hugging_face, peers, run  # noqa: E402
from lpe_jax.benchmark.workloads import Workload  # noqa: E402
from lpe_jax.decoding.path import SamplingSettings  # noqa: E402
from lpe_jax.types import Request  # noqa: E402
from tests.helpers import tiny_module  # noqa: E402

VOCABULARY, NUM_TOKENS, EOS, LONGEST, ROWS = 6, 5, (1, 4), 3, 512
PROMPTS = {"short": [2, 0], "long": [3, 3, 1, 0, 2]}
ALPHAS = (0.3, 1.5)
WAYS = (
    *(loop for loop in peers.LOOPS.values() if not loop.compiled),
    peers.Loop("preallocated", drops=True),
    peers.Loop(drops=True),
)


@pytest.fixture(scope="module")
def workload():
    original, variant = (tiny_module(0, vocab_size=VOCABULARY) for _ in range(2))
    for layer in variant.layers:
        layer.o_proj[...] *= -8.0
        layer.down_proj[...] *= 12.0
    return Workload(
        name="tiny",
        about="",
        unit="rollouts",
        original=original,
        variant=variant,
        prompts=PROMPTS,
        requests=lambda number: [Request(p, a, i) for p in PROMPTS for a in ALPHAS for i in range(ROWS)],
        settings=SamplingSettings(max_new_tokens=LONGEST),
        batch_size=ROWS,
        num_tokens=NUM_TOKENS,
        eos_ids=EOS,
        to_text=str,
    )


@pytest.fixture(scope="module")
def two(workload):
    torch.set_num_threads(1)
    return peers.TwoModels(workload)


@pytest.fixture(scope="module")
def exact(workload):
    """The probability of every response at (prompt, alpha), from our own logits."""
    pair = engine.pair_of(workload, "shared")
    found = {}
    for prompt, alpha in itertools.product(PROMPTS, ALPHAS):
        p = found[prompt, alpha] = {}

        def extend(said, so_far, prompt=prompt, alpha=alpha, p=p):
            if len(said) == LONGEST or (said and said[-1] in EOS):
                p[said] = so_far
                return
            own = engine.logits(pair, [*PROMPTS[prompt], *said])[:, -1, :NUM_TOKENS].astype(float)
            mixed = np.exp(alpha * own[0] + (1 - alpha) * own[1])
            for token, share in enumerate(mixed / mixed.sum()):
                extend((*said, token), so_far * share)

        extend((), 1.0)
        assert sum(p.values()) == pytest.approx(1)
    return found


def fits(responses, p):
    """The p-value of responses against their probabilities; rare ones are taken together."""
    assert set(responses) <= set(p), set(responses) - set(p)
    common = [r for r in p if p[r] * len(responses) >= 5]
    expected = np.array([p[r] for r in common])
    counts = np.array([responses.count(r) for r in common])
    expected, counts = np.append(expected, 1 - expected.sum()), np.append(counts, len(responses) - counts.sum())
    kept = expected * len(responses) > 1
    return stats.chisquare(counts[kept], expected[kept] / expected[kept].sum() * counts[kept].sum()).pvalue


@pytest.mark.parametrize("loop", WAYS, ids=lambda loop: loop.name)
def test_loops_draw_the_paths_own_distribution(loop, two, workload, exact):
    """Prompts of unlike length share batches here, so that padding, positions and both alphas are all in it."""
    torch.manual_seed(1)
    requests = workload.requests(0)
    said = {key: [] for key in exact}
    for batch in (requests[i::4] for i in range(4)):
        for request, (tokens, text) in zip(batch, two.rollouts(loop, batch, LONGEST), strict=True):
            said[request.prompt_id, request.alpha].append(tuple(tokens))
            assert text == str(tokens)
    for key, responses in said.items():
        assert len(responses) == ROWS
        assert fits(responses, exact[key]) > 1e-3, key


def test_generate_draws_the_paths_own_distribution(two, workload, exact, monkeypatch):
    torch.manual_seed(2)
    said = []
    monkeypatch.setattr(two, "workload", workload)
    object.__setattr__(workload, "to_text", said.append)
    work = two.generate(workload.requests(0))
    assert work.rollouts == len(said) == 4 * ROWS and work.tokens == sum(map(len, said))
    # One alpha after the other, and prompts by length.
    order = [(prompt, alpha) for alpha in ALPHAS for prompt in sorted(PROMPTS, key=lambda p: len(PROMPTS[p]))]
    for i, key in enumerate(order):
        assert fits([tuple(tokens) for tokens in said[i * ROWS : (i + 1) * ROWS]], exact[key]) > 1e-3, key


def test_the_fit_can_fail(exact):
    """Responses of one alpha are not those of the other."""
    p, other = (exact["long", alpha] for alpha in ALPHAS)
    drawn = np.random.default_rng(0).choice(len(p), ROWS, p=list(p.values()))
    responses = [list(p)[i] for i in drawn]
    assert fits(responses, p) > 1e-3 > fits(responses, other)


@pytest.mark.parametrize("draw", hugging_face.DRAWS, ids=lambda draw: draw.__name__)
def test_draws_are_exact(draw):
    torch.manual_seed(0)
    logits = torch.full((1, 300), -float("inf"))
    logits[0, [0, 7, 130, 299]] = torch.tensor([0.0, 1.0, 2.0, -1.0])
    token = draw(logits.expand(20_000, -1))
    p = torch.softmax(logits[0].double(), 0).numpy()
    counts = np.bincount(token.numpy(), minlength=300)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], p[p > 0] / p[p > 0].sum() * 20_000).pvalue > 1e-3


def test_loops_have_the_names_that_are_asked_for():
    assert tuple(peers.LOOPS) == run.LOOPS


def test_tokens_count_up_to_the_first_end():
    assert peers.first_end([False, True, False, True]) == 2
    assert peers.first_end([False, False]) == 2 and peers.first_end([True]) == 1


def test_all_ways_compute_the_same_models(two, workload):
    for mode in ("shared", "copies"):
        pair = engine.pair_of(workload, mode)
        assert all(pair.shared) is False and any(pair.shared) is (mode != "copies")
        np.testing.assert_allclose(engine.logits(pair, PROMPTS["long"]), two.logits(PROMPTS["long"]), atol=1e-3, rtol=0)
