"""The only room that knows Flower."""
