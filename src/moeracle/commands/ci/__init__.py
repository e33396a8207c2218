"""`moeracle ci`: files that put moeracle into a repository's CI, and what a CI shows of a run."""
