"""A finished model as others may have it: what inference needs, and nothing that tells cases."""
