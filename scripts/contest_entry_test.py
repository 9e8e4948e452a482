"""Tests of scripts/contest_entry.py: python3 scripts/contest_entry_test.py"""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import contest_entry

SCRIPT = Path(__file__).resolve().parent / "contest_entry.py"


class Entry(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.TemporaryDirectory()
        self.addCleanup(self.root.cleanup)
        self.god = Path(self.root.name) / "god"
        self.god.mkdir()
        (self.god / "LICENSE.md").write_text("their licence \n")
        (self.god / "NOTICE").write_text("their notice\n")
        self.folder = Path(self.root.name) / "entry"

    def make(self):
        return subprocess.run([sys.executable, SCRIPT, self.god, self.folder], capture_output=True, text=True)

    def test_an_entry_has_all_that_is_asked_for(self):
        made = self.make()
        self.assertEqual(made.returncode, 0, made.stdout + made.stderr)
        self.assertEqual((self.folder / "LICENSE.md").read_text(), "their licence \n")
        self.assertEqual((self.folder / "NOTICE").read_text(), "their notice\n")
        for name in ["LICENSE-MIT", "LICENSE-APACHE", "Cargo.toml", "crates/tenggat/Cargo.toml"]:
            self.assertTrue((self.folder / name).is_file(), name)
        self.assertFalse((self.folder / "assets/mini").exists())
        self.assertIn("is there already", self.make().stderr)

    def test_what_would_be_refused_is_named(self):
        self.make()
        (self.folder / "NOTICE").write_text("another\n")
        (self.folder / "a.bin").write_text("")
        (self.folder / contest_entry.DOCKERFILE).unlink(missing_ok=True)
        problems = contest_entry.check(self.folder, self.god)
        for part in ["NOTICE is not theirs", "a.bin", "dockerfile is missing"]:
            self.assertTrue(any(part in problem for problem in problems), problems)

    def test_their_files_are_needed(self):
        (self.god / "NOTICE").unlink()
        made = self.make()
        self.assertIn("has no NOTICE", made.stderr)
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    unittest.main()
