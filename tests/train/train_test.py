#!/usr/bin/env python3
"""Tests of quipu train and quipu tokenizer: train_test.py PROGRAM [unittest arguments]

Models are tiny; every test takes seconds. With GTEST_OUTPUT=xml:FOLDER/ set, as ./check does, a report in GoogleTest's
format is written there.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from cli_test import ReportingResult  # noqa: E402

PROGRAM = ""
FOLDER = None
TIMEOUT = int(os.environ.get("QUIPU_TEST_TIMEOUT", "600"))

MODEL = """
[model.config]
model_type = "llama"
architectures = ["LlamaForCausalLM"]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
vocab_size = {vocabulary}
intermediate_size = 64
hidden_act = "silu"
max_position_embeddings = 4096
rms_norm_eps = 1e-6
rope_theta = 10000.0
tie_word_embeddings = true
"""

COPY = """
[data]
task = "copy"
[data.copy]
letters = 4
alphabet = 8
[train]
steps = 40
sequence = 36
batch = 4
threads = 1
[optimizer]
learning_rate = 1e-2
warmup_steps = 4
[output]
folder = "{folder}"
checkpoint_steps = 5
log_steps = 1
"""


def setUpModule():
    global FOLDER
    FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="quipu-train-test-"))


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


def environment(ranks=False):
    env = {**os.environ, "XDG_CACHE_HOME": str(FOLDER / "cache"), "XDG_STATE_HOME": str(FOLDER / "state")}
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    if ranks:   # what OpenMPI's modules leave behind is found after they are unloaded, so it cannot be told from ours
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    return env


def quipu(*words, before=()):
    done = subprocess.run(
        [*before, PROGRAM, *map(str, words)], cwd=FOLDER, env=environment(ranks=bool(before)), capture_output=True, timeout=TIMEOUT,
        encoding="utf-8", errors="replace",
    )
    assert before or done.returncode in (0, 1, 2, 3), f"exit code {done.returncode} from {words}\n{done.stderr}"
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    return done


def write(name, text):
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def config(name, folder, text=COPY, vocabulary=257):
    return write(name, text.format(folder=folder) + MODEL.format(vocabulary=vocabulary))


def weights(folder):
    """The tensors of a model folder as one list of floats."""
    data = (FOLDER / folder / "model" / "model.safetensors").read_bytes()
    (header,) = struct.unpack_from("<Q", data)
    return struct.unpack(f"<{(len(data) - 8 - header) // 4}f", data[8 + header :])


class Case(unittest.TestCase):
    maxDiff = None

    def trains(self, *words, **more):
        done = quipu("train", *words, "--json", **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def refused(self, code, *words):
        done = quipu(*words)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        return lines[0]


class Resuming(Case):
    def started(self, name, folder, steps=4000):
        """A long run, killed by the caller; returns once it has written a checkpoint."""
        file = config(name, folder)
        process = subprocess.Popen(
            [PROGRAM, "train", str(file), "--steps", str(steps), "--quiet"], cwd=FOLDER, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        end = time.time() + TIMEOUT
        while not list((FOLDER / folder).glob("checkpoint-*.safetensors")):
            self.assertIsNone(process.poll(), process.stderr.read() if process.poll() is not None else "")
            self.assertLess(time.time(), end)
            time.sleep(0.02)
        return file, process

    def test_killed_in_the_middle_it_ends_with_the_same_bits(self):
        steps = 400
        whole = self.trains(config("whole.toml", "whole"), "--steps", steps)
        file, process = self.started("killed.toml", "killed", steps)
        self.assertIsNone(process.poll(), "it should not be done yet")
        process.kill()
        process.communicate()
        newest = sorted((FOLDER / "killed").glob("checkpoint-*.safetensors"))[-1]
        self.assertLess(int(newest.name.split("-")[1].split(".")[0]), steps)
        resumed = self.trains(file, "--steps", steps, "--resume")
        self.assertEqual(resumed["step"], whole["step"])
        for name in ("model/model.safetensors", f"checkpoint-{steps:08d}.safetensors"):
            mine, theirs = (FOLDER / folder / name for folder in ("killed", "whole"))
            with self.subTest(name):
                self.assertEqual(self.tensors_of(mine), self.tensors_of(theirs))
        lines = [json.loads(line) for line in (FOLDER / "killed/metrics.jsonl").read_text().splitlines()]
        seen = [line["step"] for line in lines if "loss" in line]
        self.assertEqual(seen, list(range(1, steps + 1)), "every step once, whatever was done twice")
        self.assertFalse(list((FOLDER / "killed").glob("*.tmp")), "what a killed process left behind is gone")

    def tensors_of(self, path):
        data = path.read_bytes()
        (header,) = struct.unpack_from("<Q", data)
        return data[8 + header :]   # the metadata of a checkpoint holds seconds, which differ

    def test_ctrl_c_saves_and_resume_goes_on(self):
        file, process = self.started("stopped.toml", "stopped")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn(b"--resume goes on", out)
        newest = sorted((FOLDER / "stopped").glob("checkpoint-*.safetensors"))[-1]
        stopped_at = int(newest.name.split("-")[1].split(".")[0])
        self.assertIn(f"stopped after step {stopped_at},".encode(), out)
        done = self.trains(file, "--resume", "--steps", stopped_at + 3)
        self.assertEqual(done["step"], stopped_at + 3)
        self.assertIn("checkpoint", done["resumed_from"])

    def test_a_folder_with_checkpoints_is_not_overwritten_unasked(self):
        file = config("twice.toml", "twice")
        self.trains(file, "--steps", 5)
        self.assertIn("--resume continues it, --fresh starts over", self.refused(2, "train", file))
        self.trains(file, "--steps", 5, "--fresh")
        self.assertIn("has no checkpoint to resume from", self.refused(3, "train", file, "--resume", "--out", "nowhere"))

    def test_a_damaged_checkpoint_says_so_and_the_one_before_serves(self):
        file = config("damaged.toml", "damaged")
        self.trains(file, "--steps", 10)
        newest = FOLDER / "damaged/checkpoint-00000010.safetensors"
        data = bytearray(newest.read_bytes())
        data[-100] ^= 1
        newest.write_bytes(data)
        self.assertIn("checkpoint is damaged", self.refused(3, "train", file, "--steps", 12, "--resume"))
        done = self.trains(file, "--steps", 12, "--checkpoint", FOLDER / "damaged/checkpoint-00000005.safetensors")
        self.assertEqual(done["step"], 12)


class FullDisk(Case):
    def test_what_was_saved_stays(self):
        folder = FOLDER / "small-disk"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("cannot mount a small tmpfs here; the same is tested in trainer_test with a file size limit")
        try:
            file = config("disk.toml", "small-disk/out")
            done = quipu("train", file, "--set", "output.keep=100", "--quiet")
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("No space left on device", done.stderr)
            left = sorted((folder / "out").glob("checkpoint-*"))
            self.assertTrue(left and all(path.suffix == ".safetensors" for path in left), left)
            checked = quipu("train", file, "--checkpoint", left[-1], "--out", "bigger-disk", "--quiet")
            self.assertEqual(checked.returncode, 0, checked.stderr)
        finally:
            subprocess.run(["umount", str(folder)], check=False)


class Ranks(Case):
    MPIRUN = ["mpirun", "--oversubscribe", "-np", "2"]

    def setUp(self):
        if shutil.which("mpirun") is None:
            self.skipTest("no mpirun here (Debian: openmpi-bin)")
        if not (pathlib.Path(PROGRAM).resolve().parent / "libquipu_mpi.so").exists():
            self.skipTest("this build has no OpenMPI (Debian: libopenmpi-dev)")

    def test_two_ranks_equal_one_with_twice_the_batch(self):
        one = self.trains(config("one.toml", "one"), "--steps", 20)
        two = self.trains(config("two.toml", "two"), "--steps", 20, before=self.MPIRUN)
        self.assertEqual((one["ranks"], two["ranks"]), (1, 2))
        self.assertEqual(one["tokens"], two["tokens"])
        losses = [
            [json.loads(line)["loss"] for line in (FOLDER / folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
            for folder in ("one", "two")
        ]
        self.assertEqual(len(losses[0]), 20)
        for mine, theirs in zip(*losses):
            self.assertAlmostEqual(mine, theirs, delta=2e-4 * mine)  # sums in another order
        for mine, theirs in zip(weights("one"), weights("two")):
            self.assertAlmostEqual(mine, theirs, delta=2e-3)

    def test_a_killed_rank_ends_the_other_and_nothing_is_lost(self):
        file = config("gone.toml", "gone")
        process = subprocess.Popen(
            [*self.MPIRUN, PROGRAM, "train", str(file), "--steps", "100000", "--quiet"], cwd=FOLDER, env=environment(ranks=True),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        try:
            end = time.time() + TIMEOUT
            while not list((FOLDER / "gone").glob("checkpoint-*.safetensors")):
                self.assertIsNone(process.poll())
                self.assertLess(time.time(), end)
                time.sleep(0.05)
            ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
            pids = [int(pid) for pid in ranks.stdout.split()]
            self.assertEqual(len(pids), 2, "one process a rank")
            os.kill(max(pids), signal.SIGKILL)
            _, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.assertNotEqual(process.returncode, 0)
        self.assertIn(b"the last checkpoint is whole, --resume continues from it", err)
        done = self.trains(file, "--resume", "--steps", self.step_of("gone") + 2)
        self.assertGreater(done["step"], 2)

    def step_of(self, folder):
        newest = sorted((FOLDER / folder).glob("checkpoint-*.safetensors"))[-1]
        return int(newest.name.split("-")[1].split(".")[0])


class Texts(Case):
    TEXT = """
[data]
train = "texts"
held_out_fraction = 0.2
tokenizer = "{tokenizer}"
document_separator = "\\n\\n"
[train]
steps = 30
sequence = 64
batch = 4
threads = 1
[optimizer]
learning_rate = 1e-2
[evaluate]
every = 10
sequences = 2
[output]
folder = "{folder}"
"""

    def setUp(self):
        for i in range(4):
            write(f"texts/{i}.txt", "\n\n".join(f"The knot number {i * 40 + j} is tied in cord {j % 7}." for j in range(40)))

    def test_a_model_of_a_text_runs(self):
        file = write("text.toml", self.TEXT.format(folder="text", tokenizer="bytes") + MODEL.format(vocabulary=257))
        done = self.trains(file)
        self.assertLess(done["held_out"]["loss"], 3.5)   # ln 257 = 5.5 before
        self.assertGreater(done["roof_flops"], 1e8)
        answer = quipu("run", "text/model", "--raw", "-p", "The knot number", "-n", "8", "--temperature", "0", "--json")
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.assertTrue(json.loads(answer.stdout))
        events = list((FOLDER / "text").glob("events.out.tfevents.*"))
        self.assertEqual(len(events), 1)

    def test_a_learnt_tokenizer_serves_training_and_running(self):
        made = quipu("tokenizer", "train", *sorted((FOLDER / "texts").glob("*.txt")), "--vocab-size", "280", "-o", "t.json", "--json")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(json.loads(made.stdout)["vocabulary"], 280)
        file = write("bpe.toml", self.TEXT.format(folder="bpe", tokenizer="t.json") + MODEL.format(vocabulary=300))
        self.trains(file, "--steps", 5)
        ids = quipu("tokenize", "bpe/model", "-p", "The knot number", "--ids")
        self.assertEqual(ids.returncode, 0, ids.stderr)
        self.assertLess(len(ids.stdout.split()), 10)
        self.assertIn("exists already", self.refused(2, "tokenizer", "train", "texts/0.txt", "-o", "t.json"))

    def test_the_same_file_gives_the_same_tokenizer(self):
        for name in ("a.json", "b.json"):
            self.assertEqual(quipu("tokenizer", "train", "texts/0.txt", "texts/1.txt", "--vocab-size", "290", "-o", name).returncode, 0)
        self.assertEqual((FOLDER / "a.json").read_bytes(), (FOLDER / "b.json").read_bytes())

    def test_the_estimate_of_memory_is_near(self):
        file = write("memory.toml", self.TEXT.format(folder="memory", tokenizer="bytes") + MODEL.format(vocabulary=257).replace("= 32", "= 512").replace("= 64", "= 1024"))
        done = self.trains(file, "--steps", 3, "--set", "train.sequence=512", "--set", "train.batch=16")
        self.assertLess(abs(done["estimated_peak_bytes"] / done["peak_bytes"] - 1), 0.15)


class Refusals(Case):
    def test_each_is_one_clear_line(self):
        base = COPY.format(folder="bad") + MODEL.format(vocabulary=257)
        self.assertIn("bad.toml:2: unknown key data.tusk", self.refused(3, "train", write("bad.toml", '[data]\ntusk = "copy"\n[train]\nsteps = 1\n' + MODEL.format(vocabulary=257))))
        self.assertIn("train.steps is -1", self.refused(3, "train", write("bad.toml", base.replace("steps = 40", "steps = -1"))))
        self.assertIn("there is no task cpy; there are copy, passkey", self.refused(2, "train", write("bad.toml", base.replace('task = "copy"', 'task = "cpy"').replace("[data.copy]", "[data.cpy]"))))
        self.assertIn("set vocab_size to at least 257", self.refused(3, "train", write("bad.toml", COPY.format(folder="bad") + MODEL.format(vocabulary=100))))
        self.assertIn("nothing.toml", self.refused(3, "train", "nothing.toml"))
        self.assertIn("needs a configuration", self.refused(2, "train"))
        self.assertIn("--set: expected", self.refused(2, "train", write("bad.toml", base), "--set", "steps"))
        self.assertIn("contradict", self.refused(2, "train", "bad.toml", "--resume", "--fresh"))
        short = Texts.TEXT.format(folder="short", tokenizer="bytes").replace("sequence = 64", "sequence = 4096").replace("texts", "one.txt").replace("held_out_fraction = 0.2", "").replace("every = 10", "")
        write("one.txt", "too short")
        self.assertIn("fewer than one sequence", self.refused(3, "train", write("short.toml", short + MODEL.format(vocabulary=257))))
        self.assertIn("unknown action", self.refused(2, "tokenizer", "learn", "x"))
        self.assertIn("expected 258", self.refused(2, "tokenizer", "train", "one.txt", "--vocab-size", "257", "--special", "<a>", "--special", "<b>", "-o", "z.json"))


def main():
    global PROGRAM
    PROGRAM = str(pathlib.Path(sys.argv.pop(1)).resolve())
    runner = unittest.TextTestRunner(resultclass=ReportingResult, verbosity=1)
    outcome = unittest.main(exit=False, testRunner=runner).result
    target = os.environ.get("GTEST_OUTPUT", "")
    if target.startswith("xml:") and target.endswith("/"):
        text = ElementTree.tostring(outcome.suite, encoding="unicode")
        clean = re.sub(r"&#(\d|[12]\d|3[01]);|[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", text)
        pathlib.Path(target[4:] + "train_cli_test.xml").write_text(clean)
    sys.exit(0 if outcome.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
