"""The JSON of a run, and its HTML page."""
