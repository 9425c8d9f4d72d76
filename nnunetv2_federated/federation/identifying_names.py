"""Names of cases and patients, and paths of a machine, found again in texts that leave it.

A name such as ``BRATS_012`` tells a case wherever it stands. One such as ``1``, ``heart`` or a
label of the model also stands for other things: it counts only where it is the name of a file, as
in ``1_0000.nii.gz``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_FILE = re.compile(
    r"(?P<name>.+?)(?P<channel>_\d{4})?"
    r"(?P<ending>\.(?:nii|nii\.gz|png|bmp|jpe?g|tiff?|mha|nrrd|dcm|b2nd|npz|npy|pkl))?"
)
_WORD = re.compile(r"[^\s/\\\"'`<>|,;:()\[\]{}=*?#]+")
_PATH_AFTER = r"(?![A-Za-z0-9_.-])"
_SHORTEST, _SHORTEST_NUMBER = 3, 6
"""Characters of a name that tells a case, and digits of one without letters: fewer are a class, an
axis or a count."""


class IdentifyingNames:
    """Names and paths that must not leave.

    Parameters
    ----------
    names
        Identifiers of cases and patients.
    paths
        Folders of this machine.
    harmless
        Words that a model needs, such as its labels: a case of such a name is no less hidden.
    """

    def __init__(
        self, names: Iterable[str], paths: Iterable[str], harmless: Collection[str] = ()
    ) -> None:
        known = {name for name in names if name}
        self._telling = {name for name in known - set(harmless) if _tells(name)}
        self._files = known
        # a name of several words is no word: it is looked for as it is
        self._phrases = [name for name in self._telling if _WORD.fullmatch(name) is None]
        shown = sorted({path.rstrip("/") for path in paths} - {""}, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, shown))
        self._paths = re.compile(f"(?:{alternatives}){_PATH_AFTER}") if shown else None

    def stands_in(self, text: str) -> str | None:
        """Return what of it stands in a text: ``the name of a case``; ``None`` for nothing."""
        if self._paths is not None and self._paths.search(text):
            return "a path of this machine"
        if any(phrase in text for phrase in self._phrases) or any(
            self._names(word) for word in _WORD.findall(text)
        ):
            return "the name of a case or a patient"
        return None

    def _names(self, word: str) -> bool:
        """Whether a word is a telling name, or a file of any case."""
        bare = word.strip(".")
        match = _FILE.fullmatch(bare)
        if bare in self._telling or match is None:
            return bare in self._telling
        is_file = match["channel"] is not None or match["ending"] is not None
        with_channel = match["name"] + (match["channel"] or "")
        return match["name"] in self._telling or (
            is_file and (match["name"] in self._files or with_channel in self._files)
        )


def _tells(name: str) -> bool:
    """Whether a name is no usual word: it has signs of several kinds, a capital or many digits."""
    digits = sum(sign.isdigit() for sign in name)
    if not any(sign.isalpha() for sign in name):
        return digits >= _SHORTEST_NUMBER
    usual = name.isalpha() and name.isascii() and name.islower()
    return len(name) >= _SHORTEST and not usual
