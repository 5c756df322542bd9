"""How fast the decode is, against what a user would run instead, at equal work."""
