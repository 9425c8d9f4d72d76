"""A federation over a network: what the server and the sites need beyond one machine's."""
