"""The search for a case on which a kernel is wrong, and making that case small."""
