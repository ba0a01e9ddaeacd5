#!/usr/bin/env python3
"""Tests of quipu demo passkey and quipu reproduce passkey: passkey_test.py PROGRAM [unittest arguments]"""

import json
import os
import unittest

import cli_test
from cli_test import Case, quipu, setUpModule, tearDownModule  # noqa: F401


class Demo(Case):
    def test_finds_the_key_wherever_it_is_hidden(self):
        keys = set()
        for position in ("0", "0.37", "1"):
            done = quipu("demo", "passkey", "--length", "20k", "--seed", "7", "--position", position, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            told = json.loads(done.stdout)
            self.assertEqual(told["answer"], told["expected"])
            self.assertEqual(len(told["expected"]), 5)
            self.assertEqual(told["tokens"], 20480)
            self.assertGreater(told["seconds"], 0)
            self.assertGreater(told["text_bytes"], 3 * told["tokens"])
            keys.add(told["expected"])
        self.assertEqual(len(keys), 1, "the seed decides the key")

    def test_memory_has_one_size(self):
        bytes_of = [json.loads(quipu("demo", "passkey", "--length", length, "--seed", "1", "--json").stdout)["state_bytes"]
                    for length in ("1k", "8k", "40k")]
        self.assertEqual(len(set(bytes_of)), 1, bytes_of)

    def test_shows_what_it_hides(self):
        done = quipu("demo", "passkey", "--length", "4k", "--seed", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        shown, answer = done.stderr, done.stdout
        key = answer.split("answer")[1].split()[0]
        self.assertIn(f"The pass key is {key}. Remember it. {key} is the pass key.", " ".join(shown.split()))
        self.assertIn("right", answer)
        for word in ("parameters", "4,096 tokens", "hidden"):
            self.assertIn(word, shown)

    def test_wrong_words_are_refused(self):
        for words, message in ((["demo"], "nothing named"), (["demo", "paskey"], "there is passkey"),
                               (["demo", "passkey", "--position", "1.5"], "1"), (["demo", "passkey", "--length", "9"], "expected 6"),
                               (["demo", "passkey", "--model", "tiny.gguf", "--length", "1k"], "data.task"),
                               (["reproduce", "passkey", "--only", "lineal"], "linear")):
            done = quipu(*words)
            self.assertIn(done.returncode, (2, 3), words)
            self.assertIn(message, done.stderr, words)


@unittest.skipUnless(os.environ.get("QUIPU_SLOW_TESTS"), "trains for a minute or more: QUIPU_SLOW_TESTS=1 runs it")
class Quick(Case):
    def setUp(self):
        super().setUp()
        self.timeout, cli_test.TIMEOUT = cli_test.TIMEOUT, max(cli_test.TIMEOUT, 1500)

    def tearDown(self):
        cli_test.TIMEOUT = self.timeout

    def test_a_model_learns_and_it_is_the_memory_that_does(self):
        """Trains for a minute or two; the claims are the test: digits right, and none by luck without the own memory."""
        done = quipu("reproduce", "passkey", "--quick", "--work", "work", "--json")
        self.assertIn(done.returncode, (0, 1), done.stderr)
        claims = json.loads(done.stdout)
        controls = [one for one in claims if "no better than guessing" in one["claim"]]
        answers = [one for one in claims if "digits right" in one["claim"]]
        self.assertEqual({one["claim"].split(", ")[1].split(":")[0] for one in controls}, {"foreign memory", "memory off"})
        for one in controls:
            self.assertTrue(one["holds"], one)
        # Far above guessing (10 %) wherever the window does not reach; how far depends on the machine's sums.
        for one in answers:
            self.assertGreater(one["ours"], 60, one)
        made = cli_test.FOLDER / "work-quick"
        self.assertIn("<svg", (made / "passkey.svg").read_text())
        models = json.loads((made / "passkey.json").read_text())["models"]
        self.assertGreater(models[0]["training"]["held_out_digit_accuracy"], 0.6)
        again = quipu("reproduce", "passkey", "--quick", "--work", "work", "--json")
        self.assertEqual(json.loads(again.stdout), claims, "finished parts are not done again")


if __name__ == "__main__":
    cli_test.main()
