"""What each command does; `moeracle.cli` holds their options.

Each `run_` function returns an exit code, and raises ValueError in one line for a user's mistake.
"""
