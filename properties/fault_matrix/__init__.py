"""Which check sees which fault, what published tolerances say, and that legal kernels pass."""
