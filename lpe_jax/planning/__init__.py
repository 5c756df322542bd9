"""Whether a pair fits hardware that is not there, and how fast it would be."""
