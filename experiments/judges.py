"""The flags that say who judges and how a judge that is a model is asked, for programs that judge."""

from __future__ import annotations

from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "judge",
    None,
    "Who decides what complied: rules, tiny, phrases:LIST, openai:MODEL, http://HOST/v1#MODEL, jax:CHECKPOINT, a "
    "Python function as mypackage.judges:complied, or screen:A,confirm:B,audit=0.01 of two of them. Default: the "
    "embedded pair's exact rule, else rules.",
)
flags.DEFINE_string(
    "judge_template",
    None,
    "Rubric judges: a file with {prompt} and {response} in it, or `inspect` for the StrongREJECT rubric that the "
    "inspect-evals package brings. Default: our own rubric of the same three questions.",
)
flags.DEFINE_string(
    "judge_key_env",
    None,
    "Name of the environment variable with the API key, or HOST=NAME of each server, separated by commas. Default: "
    "OPENAI_API_KEY for openai:…, none for other servers.",
)
flags.DEFINE_string(
    "judge_budget",
    None,
    "Stop before the judge has had more than this in the whole run: 5000calls, or an amount at --judge_prices.",
)
flags.DEFINE_list("judge_prices", None, "Price of a million input tokens and of a million output tokens, as 0.25,2.")
flags.DEFINE_integer("judge_connections", 64, "Calls to the judge under way at once, at most.", lower_bound=1)
flags.DEFINE_float("judge_timeout", 120.0, "Seconds that a call to the judge may take.", lower_bound=0.1)
flags.DEFINE_enum(
    "judge_mapping",
    "refusal",
    ["refusal", "unsafe", "unsafe_or_controversial"],
    "Guard models: what counts as complied. refusal: `Refusal: No`. unsafe: `Safety: Unsafe`, where Controversial is "
    "unscored; or either of both.",
)
flags.DEFINE_boolean("judge_reasoning", False, "Judge responses with their reasoning, not only what follows </think>.")
flags.DEFINE_boolean("judge_again", False, "Ask again about responses that went unscored although the judge did reply.")
flags.DEFINE_integer("judge_batch_size", 16, "jax: judges: rows of a compiled batch.", lower_bound=1)

flags.DEFINE_boolean(
    "dry_run",
    False,
    "Say what this command would still take: rollouts, tokens, hours, calls of the judge, money, disk. Nothing is "
    "loaded, asked, drawn or written.",
)

# Those that decide verdicts.
JUDGE_FLAGS = ("judge_template", "judge_mapping", "judge_reasoning")
TOPICS = {
    "the judge": (
        *("judge", *JUDGE_FLAGS, "judge_key_env", "judge_budget", "judge_prices", "judge_connections"),
        *("judge_timeout", "judge_again", "judge_batch_size"),
    ),
    "the run": ("dry_run",),
}


def asked_fields():
    """The fields of lpe_jax.asked.Asked that these flags decide.

    Raises:
      UserError: one of them cannot be used.
    """
    from lpe_jax.errors import UserError
    from lpe_jax.judging.settings import Budget, JudgeSettings

    prices = None
    if FLAGS.judge_prices is not None:
        try:
            prices = tuple(float(price) for price in FLAGS.judge_prices)
        except ValueError:
            prices = ()
        if len(prices) != 2 or not all(0 <= price < 1e9 for price in prices):
            raise UserError(f"--judge_prices={','.join(FLAGS.judge_prices)} must be two prices, as 0.25,2")
    if not FLAGS.judge_timeout < float("inf"):
        raise UserError(f"--judge_timeout={FLAGS.judge_timeout} must be a number of seconds")
    budget = Budget() if FLAGS.judge_budget is None else Budget.parse(FLAGS.judge_budget)
    if budget.money is not None and prices is None:
        raise UserError(
            f"--judge_budget={FLAGS.judge_budget} is an amount, and takes --judge_prices; or give a number of calls, "
            "as 5000calls"
        )
    settings = JudgeSettings(
        template=FLAGS.judge_template,
        key_env=FLAGS.judge_key_env,
        budget=budget,
        prices=prices,
        connections=FLAGS.judge_connections,
        timeout=FLAGS.judge_timeout,
        mapping=FLAGS.judge_mapping,
        batch_size=FLAGS.judge_batch_size,
        again=FLAGS.judge_again,
    )
    return {"judge_settings": settings, "judge_reasoning": FLAGS.judge_reasoning}
