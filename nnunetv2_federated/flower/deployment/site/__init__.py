"""A hospital's side of a federation over a network; it needs nothing of the server's."""
