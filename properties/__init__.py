"""How trouble is found: cases, data, judge, laws, suite."""
