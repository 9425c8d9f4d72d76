"""A federation over a network: credentials of the server and the sites."""
