"""Trials of any task of Inspect: alpha, score and success are found where the user says, or that is said."""

import math

import pytest

from lpe_jax.errors import RunError
from lpe_jax.trials import Cell

log = pytest.importorskip("inspect_ai.log")
from inspect_ai.scorer import Score  # noqa: E402

from lpe_jax.inspect_logs import read  # noqa: E402


def written(path, scores, *, status="success", error=False, name="e", **spec):
    """A log; scores: by sample id, of each epoch, the values of its scorers."""
    samples = [
        log.EvalSample(
            id=sample_id,
            epoch=epoch,
            input="fold a boat",
            target="",
            metadata={"alpha": 0.5},
            scores={scorer: Score(value=value) for scorer, value in values.items()},
            error=log.EvalError(message="x", traceback="", traceback_ansi="") if error else None,
        )
        for sample_id, epochs in scores.items()
        for epoch, values in enumerate(epochs, start=1)
    ]
    about = log.EvalSpec(
        eval_id=name,
        created="2026-01-01T00:00:00+00:00",
        task="behave",
        dataset=log.EvalDataset(sample_ids=list(scores)),
        model="some/model",
        config=log.EvalConfig(epochs=max(map(len, scores.values()))),
        **spec,
    )
    log.write_eval_log(log.EvalLog(status=status, eval=about, samples=samples), str(path))
    return path


def test_every_epoch_of_every_sample_is_a_trial(tmp_path):
    values = ["C", "I", "N", math.nan, "C"]
    paths = [
        written(
            tmp_path / f"{alpha}{ending}",
            {"one": [{"passed": v} for v in values], 2: [{"passed": "I"}]},
            name=str(alpha),
            task_args={"alpha": alpha},
        )
        for alpha, ending in ((0.25, ".eval"), (0.5, ".json"))
    ]
    told = {0.25: Cell(2, 2, 1), 0.5: Cell(2, 2, 1)}
    assert read(paths, alpha="task_args.alpha") == {"one": told, "2": {0.25: Cell(0, 1), 0.5: Cell(0, 1)}}


def test_alpha_is_where_the_user_says(tmp_path):
    path = written(
        tmp_path / "a.eval",
        {"one": [{"passed": "C"}]},
        model_args={"alpha": "0.75", "at": {"path": 1}, "on": True},
        metadata={"lpe.alpha": -0.5},
    )
    for field, alpha in (
        ("model_args.alpha", 0.75),
        ("model_args.at.path", 1.0),
        ("metadata.lpe.alpha", -0.5),
        ("sample.alpha", 0.5),
    ):
        assert read([path], alpha=field) == {"one": {alpha: Cell(1)}}
    for field in ("task_args.alpha", "sample.beta", "model", "model_args.on", "model_args.at", "alpha"):
        with pytest.raises(RunError, match=f"--alpha_field={field} is"):
            read([path], alpha=field)


@pytest.mark.parametrize(
    "value, success, passes",
    [
        (1, "1", True), (1.0, "1", True), (0, "1", False), (True, "true", True), (False, "true", False),
        ("yes", "yes", True), (0.75, ">=0.5", True), (0.5, ">0.5", False), (0.25, "<0.5", True),
        ("0.75", ">=0.5", False), (0.5, "<=0.5", True), (1, "C", False),
    ],
)  # fmt: skip
def test_success_is_what_the_user_says(tmp_path, value, success, passes):
    path = written(tmp_path / "a.eval", {"one": [{"passed": value}]}, task_args={"alpha": 0.5})
    assert read([path], alpha="task_args.alpha", success=success) == {"one": {0.5: Cell(int(passes), int(not passes))}}


def test_scores_are_told_apart(tmp_path):
    scores = {"one": [{"a": "C", "b": {"x": 1, "y": 0}}]}
    path = written(tmp_path / "a.eval", scores, task_args={"alpha": 0.5})
    for score, success, cell in (("a", "C", Cell(1)), ("b.x", "1", Cell(1)), ("b.y", "1", Cell(0, 1))):
        assert read([path], alpha="task_args.alpha", score=score, success=success) == {"one": {0.5: cell}}
    for score, said in ((None, "name one with --score"), ("c", "it has a, b"), ("b", "--score=b.x"), ("b.z", "no 'z'")):
        with pytest.raises(RunError, match=said):
            read([path], alpha="task_args.alpha", score=score)


def test_what_did_not_end_well_is_told(tmp_path):
    given = {"task_args": {"alpha": 0.5}}
    path = written(tmp_path / "a.eval", {"one": [{"passed": "C"}]}, status="error", **given)
    with pytest.raises(RunError, match="ended as 'error'"):
        read([path], alpha="task_args.alpha")
    assert read([path], alpha="task_args.alpha", unfinished=True) == {"one": {0.5: Cell(1)}}
    failed = written(tmp_path / "b.eval", {"one": [{"passed": "C"}]}, error=True, name="f", **given)
    assert read([failed], alpha="task_args.alpha") == {"one": {0.5: Cell(0, 0, 1)}}
    again = written(tmp_path / "c.eval", {"one": [{"passed": "C"}]}, error=True, name="f", **given)
    with pytest.raises(RunError, match="would count twice"):
        read([failed, again], alpha="task_args.alpha")
    (tmp_path / "d.eval").write_bytes(b"no log")
    with pytest.raises(RunError, match="cannot be read as a log of Inspect"):
        read([tmp_path / "d.eval"], alpha="task_args.alpha")
    with pytest.raises(RunError, match="--success=>=high"):
        read([failed], alpha="task_args.alpha", success=">=high")
