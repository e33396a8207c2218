"""The commands of `moeracle checkpoint`."""
