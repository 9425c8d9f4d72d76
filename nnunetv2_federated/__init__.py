"""Federated training for nnU-Net v2, with Flower."""

__version__: str


def __getattr__(name: str) -> str:
    """Look the version up in the installed package's metadata when it is first asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415  # importing the package stays cheap

    return version("nnunetv2-federated")
