"""The run folder that a program is about: its argument, or --run."""

from __future__ import annotations

from absl import flags

flags.DEFINE_string("run", None, "A run folder; it may as well be given without a flag.")
