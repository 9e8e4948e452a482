"""Makes a repository that can enter the timed contest: python3 scripts/contest_entry.py GOD FOLDER

GOD is a checkout of the contest's own repository (G.O.D), whose LICENSE and NOTICE an entry must carry word by word; FOLDER
is made. It gets what is committed here, without the built-in model, which an entry may not bring, and with their LICENSE and
NOTICE beside our LICENSE-MIT and LICENSE-APACHE, which go on to apply to our sources.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Names that the contest accepts. Source: G.O.D docs/miner.md, "License And Notice".
LICENSES = ["LICENSE.md", "LICENSE", "license.md", "license", "License.md", "License"]
NOTICES = ["NOTICE", "NOTICE.txt", "notice.txt", "Notice.txt", "notice", "Notice"]
DOCKERFILE = "ops/docker/standalone-image-toolkit-trainer.dockerfile"
# What the contest's scan rejects, and what an entry does not need.
REJECTED = {".bin", ".dll", ".pyc", ".so"}
LEFT_OUT = ["assets/mini", "tests", "bench/results"]


def first(folder, names):
    """The first of these files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    sys.exit(f"{folder} has no {names[0]}; give a checkout of the contest's repository")


def committed(into, commit):
    """Puts what is committed into a folder."""
    with tempfile.TemporaryFile() as archive:
        subprocess.run(["git", "-C", ROOT, "archive", "--format=tar", commit], stdout=archive, check=True)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(into, filter="data")


def lines(path):
    """A file as the contest compares it: without spaces at the ends of lines."""
    return [line.rstrip() for line in path.read_text().strip().splitlines()]


def check(folder, god):
    """What would have the entry refused."""
    problems = []
    if not (folder / DOCKERFILE).is_file():
        problems.append(f"{DOCKERFILE} is missing")
    for names in (LICENSES, NOTICES):
        theirs, ours = first(god, names), [folder / name for name in names if (folder / name).is_file()]
        if len(ours) != 1 or lines(ours[0]) != lines(theirs):
            problems.append(f"{names[0]} is not theirs")
    for path in sorted(folder.rglob("*")):
        if path.suffix in REJECTED:
            problems.append(f"{path.relative_to(folder)} would be taken for compiled code")
        elif path.suffix == ".safetensors":
            problems.append(f"{path.relative_to(folder)} would be taken for a model")
    return problems


def main(god, folder, commit="HEAD"):
    god, folder = Path(god), Path(folder)
    if folder.exists():
        sys.exit(f"{folder} is there already; name a new folder")
    license, notice = first(god, LICENSES), first(god, NOTICES)
    folder.mkdir(parents=True)
    committed(folder, commit)
    for name in LEFT_OUT:
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copyfile(license, folder / license.name)
    shutil.copyfile(notice, folder / notice.name)
    problems = check(folder, god)
    for problem in problems:
        print(f"would be refused: {problem}")
    if problems:
        sys.exit(1)
    print(f"{folder} can be entered: commit it to a repository of its own, and give the contest that commit")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
