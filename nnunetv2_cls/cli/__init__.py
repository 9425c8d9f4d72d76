"""Commands."""

import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # a library's, to its developers
