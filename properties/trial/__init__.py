"""One kernel on one case: run on guarded memory, twice, and judged."""
