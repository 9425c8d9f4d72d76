"""The rules of a federation: numpy and the standard library only."""
