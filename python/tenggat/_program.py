"""Where the program is."""

import os
import shutil
import sysconfig


class TenggatError(RuntimeError):
    """The program is missing, or it failed. ``exit_code`` is its exit code, if it was started."""

    def __init__(self, message: str, exit_code: "int | None" = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def find_program() -> str:
    """The path of the program: ``$TENGGAT_PROGRAM``, that of this environment, or the one on the PATH.

    Raises:
        TenggatError: there is none.
    """
    named = os.environ.get("TENGGAT_PROGRAM")
    if named:
        return named
    schemes = [None, "posix_user"]
    for scheme in schemes:
        folder = sysconfig.get_path("scripts", scheme) if scheme else sysconfig.get_path("scripts")
        path = os.path.join(folder, "tenggat")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("tenggat")
    if found is None:
        raise TenggatError("the program tenggat is not installed; install its wheel, or set TENGGAT_PROGRAM")
    return found
