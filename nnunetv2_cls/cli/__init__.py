"""Commands: each parses its flags, calls one function of the package and prints what it returns."""

import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to their developers
