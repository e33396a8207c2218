"""The bits themselves, where the order of a sum is declared."""
