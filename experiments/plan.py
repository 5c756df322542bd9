"""Before hardware is booked: whether a pair fits it, how fast it could be, and what a sweep would take.

    python -m experiments.plan --original=Qwen/Qwen3-4B --topology=v5e:4x4 --pair_mode=ablated
    python -m experiments.plan --original=./a/config.json --topology=h200 --batch_size=512 --n_naive=100000
    python -m experiments.plan --original=./a --topology=v6e:2x2 --model_parallel=2 --json=plan.json

Only config.json is read. The decode is compiled for the hardware, which need not be there: pip install 'lpe_jax[tpu]'
or 'lpe_jax[cuda13]' on any machine. A compile takes from seconds to minutes; finding the largest batch takes several.
"""

from __future__ import annotations

from absl import flags

from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "original", None, "Folder with the original's config.json, that file, or hub id org/name[@revision]."
)
flags.DEFINE_string("variant", None, "The variant's, likewise, to be told whether they can be mixed. Default: alike.")
flags.DEFINE_string(
    "topology",
    None,
    "What to plan for: v5e:4x4, v6e:2x2, v5p:2x2x1 and the like; a100, h100, h200, or h200:8 for eight of a machine; "
    "cpu compiles for this machine.",
)
flags.DEFINE_integer("batch_size", None, "Rows over all devices. Default: about the most that fit.", lower_bound=1)
flags.DEFINE_integer("prompt_slots", 64, "Tokens of the longest prompt.", lower_bound=1)
flags.DEFINE_integer("max_new_tokens", 256, "Longest response in tokens.", lower_bound=1)
flags.DEFINE_integer("model_parallel", 1, "Devices that share one copy of the models; the others take rows.", 1)
flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "float32", "bfloat16", "float16"],
    "As for the other programs; auto is that of the target.",
)
flags.DEFINE_enum(
    "pair_mode",
    "copies",
    ["copies", "shared", "ablated"],
    "What of the two models is there twice: all; what an abliterated variant differs in (embedding, o_proj, "
    "down_proj); or nothing.",
)
flags.DEFINE_enum(
    "attention",
    "auto",
    ["auto", "einsum", "pallas"],
    "As for the other programs; auto is the kernel where the target can have it.",
)
flags.DEFINE_integer("num_prompts", 200, "Of the sweep: prompts.", lower_bound=1)
flags.DEFINE_integer("num_alphas", 21, "Of the sweep: alphas.", lower_bound=1)
flags.DEFINE_integer("n", 100, "Of the sweep: rollouts per prompt at each alpha.", lower_bound=0)
flags.DEFINE_integer("n_naive", 0, "Of the sweep: further rollouts of the original alone, per prompt.", lower_bound=0)
flags.DEFINE_float("mean_tokens", None, "Of the sweep: tokens of a rollout. Default: --max_new_tokens.", lower_bound=1)
flags.DEFINE_boolean("grid_logps", True, "Of the sweep: log p of every rollout at all alphas, as experiments.sample.")
flags.DEFINE_float("memory_gib", None, "Memory of a device in GiB, instead of what the chip is known to have.", 0.001)
flags.DEFINE_float("efficiency", 0.5, "Share of the ceiling that is expected; an assumption.", 0.001, 1.0)
flags.DEFINE_string("json", None, "Write the plan to this file too, as JSON.")

PLAN_FLAGS = (
    *("original", "variant", "topology", "batch_size", "prompt_slots", "max_new_tokens", "model_parallel", "dtype"),
    *(
        "pair_mode",
        "attention",
        "num_prompts",
        "num_alphas",
        "n",
        "n_naive",
        "mean_tokens",
        "grid_logps",
        "memory_gib",
        "efficiency",
    ),
)


def main() -> None:
    from pathlib import Path

    from lpe_jax.errors import UserError
    from lpe_jax.planning import targets

    for name in ("original", "topology"):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing: {FLAGS[name].help}")
    targets.split_topology(FLAGS.topology)
    targets.prepare()
    from lpe_jax.plan import Wanted, make_plan
    from lpe_jax.planning.report import as_json, as_text
    from lpe_jax.records.files import write_json

    plan = make_plan(Wanted(**{name: FLAGS[name].value for name in PLAN_FLAGS}))
    print(as_text(plan))
    if FLAGS.json:
        write_json(Path(FLAGS.json), as_json(plan))
        print(f"\nwritten to {FLAGS.json}")


if __name__ == "__main__":
    launch.run(main)
