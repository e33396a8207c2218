"""`moeracle golden`: fixtures that regenerate byte for byte."""
