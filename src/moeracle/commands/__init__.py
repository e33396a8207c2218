"""What each command does; `moeracle.cli` holds their options."""
