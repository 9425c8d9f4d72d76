"""A PostgreSQL server of a test's own, reached by a socket in its folder."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from consortium import wait_for

from nnunetv2_federated.federation.children import die_with_parent

USER = "tuner"


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; Debian has them in none of PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class PostgreSQL:
    """The server, which refuses to run as root."""

    def __init__(self) -> None:
        bin_folder = programs()
        if bin_folder is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        self._bin = bin_folder
        self._user: int | None = None
        # in no folder of pytest's: those are for one user, and too deep for a socket
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        self.password = secrets.token_hex(8)
        word = self.folder / "password"
        word.write_text(self.password)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = nobody.pw_uid
            for path in (self.folder, word):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        self._data = self.folder / "data"
        options = ["--no-sync", "-U", USER, "--auth=scram-sha-256", f"--pwfile={word}"]
        subprocess.run(
            [str(self._bin / "initdb"), *options, "-D", str(self._data)],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            user=self._user,
        )
        self.start()

    def url(self, password: str | None = None) -> str:
        return (
            f"postgresql+psycopg://{USER}:{password or self.password}@/postgres?host={self.folder}"
        )

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            options = ["-k", str(self.folder), "-c", "listen_addresses=", "-c", "fsync=off"]
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=die_with_parent(),  # noqa: PLW1509  # one call of libc
                user=self._user,
            )
        ready = [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder)]
        wait_for(lambda: not subprocess.run(ready, check=False).returncode, "PostgreSQL", 60)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once, as in a power cut
        self._process.wait(60)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
