#!/usr/bin/env python3
"""Tests of `quipu reproduce variants --quick`: study_test.py PROGRAM [unittest arguments]

Models learn what stands in the made-up texts, and a control whose texts have no order to learn does not; what is finished is
never computed again; a study that was killed goes on.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = ""
FOLDER = None


def setUpModule():
    global FOLDER
    FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="quipu-study-test-"))


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


def command(*words):
    return [PROGRAM, "reproduce", "variants", "--quick", "--work", "study", *words]


def run(*words):
    return subprocess.run(command(*words), cwd=FOLDER, capture_output=True, encoding="utf-8", check=False)


class Study(unittest.TestCase):
    def test_1_a_killed_study_goes_on(self):
        running = subprocess.Popen(command("--only", "mha"), cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        plan = FOLDER / "study-quick/mha-1.toml"
        for _ in range(6000):
            if plan.exists() or running.poll() is not None:
                break
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        self.assertTrue(plan.exists())
        done = run("--only", "mha,shuffled", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        for claim in json.loads(done.stdout):
            self.assertTrue(claim["holds"], claim)

    def test_2_the_learning_signal_is_real(self):
        study = json.loads((FOLDER / "study-quick/variants.json").read_text())
        cells = {model["name"]: model["seeds"] for model in study["models"]}
        learnt, control = cells["mha"][0], cells["shuffled"][0]
        # Rules of the language are there to learn: far below what the frequencies of tokens give. Without order, they are all
        # there is, and a document's own frequencies.
        self.assertLess(learnt["loss"], 0.6 * learnt["unigram_loss"])
        self.assertGreater(control["loss"], 0.9 * control["unigram_loss"])
        self.assertEqual(sum(s["tokens"] for s in learnt["loss_by_position"]), sum(s["tokens"] for s in control["loss_by_position"]))

    def test_3_finished_cells_are_kept(self):
        path = FOLDER / "study-quick/mha-1.cell.json"
        cell = json.loads(path.read_text())
        cell["loss"] = 1.25   # what is there is believed
        path.write_text(json.dumps(cell))
        before = path.stat().st_mtime_ns
        done = run("--only", "mha", "--json")
        self.assertIn(1.25, [claim["ours"] for claim in json.loads(done.stdout)])
        self.assertEqual(path.stat().st_mtime_ns, before)

    def test_4_bad_questions_are_refused(self):
        done = run("--only", "mhc")
        self.assertEqual(done.returncode, 2)
        self.assertIn("mha, mtla2", done.stderr)
        (FOLDER / "study-quick/mha-1.cell.json").write_text("{}")
        done = run("--only", "mha")
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("not a cell of an earlier run", done.stderr)
        absent = subprocess.run([PROGRAM, "reproduce", "variants", "--work", "full", "--corpus", "nowhere"], cwd=FOLDER, capture_output=True,
                                encoding="utf-8", check=False)
        self.assertEqual(absent.returncode, 3, absent.stderr)
        self.assertIn("tools/fetch_corpus makes the corpus", absent.stderr)


if __name__ == "__main__":
    PROGRAM = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
