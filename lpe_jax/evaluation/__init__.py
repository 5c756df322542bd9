"""Estimators judged: banks of rollouts with known rates, and measures of what was made of them."""
