"""What a legal kernel may store: how far it may be from the answer."""
