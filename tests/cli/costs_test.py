#!/usr/bin/env python3
"""Tests of quipu cost, bench-rooms and reproduce: costs_test.py PROGRAM [unittest arguments]"""

import json
import pathlib
import shutil
import signal
import subprocess
import time
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

import cli_test
from cli_test import Case, quipu, setUpModule, tearDownModule  # noqa: F401


def config(**more):
    """A model of ours, with nothing beside it: costs need no weights."""
    made = {
        "model_type": "quipu",
        "architectures": ["QuipuForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "vocab_size": 100,
        "intermediate_size": 128,
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention": {"room": "grouped_query", "heads": 4, "kv_heads": 4, "head_dim": 16, "rope_theta": 10000.0},
    }
    made.update(more)
    path = cli_test.FOLDER / "config.json"
    path.write_text(json.dumps(made))
    return path


class Cost(Case):
    def test_table_names_every_memory_and_the_rule(self):
        done = quipu("cost", config(), "--context", "1k,1M")
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in ("MHA (this model)", "MQA", "MLA", "MTLA s=2", "MTLA s=3", "MTLA s=4", "Infini linear", "Infini delta",
                     "Infini delta_true", "Infini linear +window", "with Mixture-of-Depths", "1M tokens of context",
                     "rank 4 d = 64, rope d/2 = 8"):
            self.assertIn(name, done.stdout)
        self.assertLessEqual(max(len(line) for line in done.stdout.splitlines()), 100, done.stdout)

    def test_json_holds_the_closed_forms(self):
        done = quipu("cost", config(), "--context", "1000", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        table = json.loads(done.stdout)
        at = {room["key"]: room["costs"][0] for room in table["rooms"]}
        self.assertEqual(at["own"]["state_bytes"], 4 * 2 * 4 * 16 * 2 * 1000)
        self.assertEqual(at["mqa"]["state_bytes"], 4 * 2 * 16 * 2 * 1000)
        self.assertEqual(at["mla"]["state_bytes"], 4 * (64 + 8) * 2 * 1000)
        self.assertEqual(at["own"]["decode_context_flops"], 4 * 4 * 4 * 16 * 1000)
        self.assertEqual(at["own"]["prefill_context_flops"], 4 * 4 * 4 * 16 * 1000 * 1001 // 2)
        self.assertEqual(sum(r["bytes"] for r in at["mtla3"]["regions"]), at["mtla3"]["state_bytes"])

    def test_a_gguf_file_and_a_folder_will_do(self):
        by_file = json.loads(quipu("cost", "tiny.gguf", "--context", "2k", "--json").stdout)
        self.assertEqual(by_file["rooms"][0]["name"], "GQA 2")
        self.assertTrue(by_file["weights_seen"])
        config()
        by_folder = json.loads(quipu("cost", cli_test.FOLDER, "--context", "2k", "--json").stdout)
        self.assertFalse(by_folder["weights_seen"])
        self.assertEqual(by_folder["bits_per_weight"], 16)

    def test_a_model_of_latents_keeps_its_own_rank(self):
        attention = {"room": "temporal_latent", "stride": 3, "heads": 4, "latent_rank": 24, "nope_dim": 16, "rope_dim": 8,
                     "value_dim": 16, "latent_norm": "layer", "norm_epsilon": 1e-6, "rope_theta": 10000.0, "hyper_dim": 6}
        table = json.loads(quipu("cost", config(attention=attention), "--context", "3000", "--json").stdout)
        at = {room["key"]: room["costs"][0]["state_bytes"] for room in table["rooms"]}
        self.assertEqual(table["rooms"][0]["name"], "MTLA s=3")
        self.assertNotIn("mtla3", at)
        self.assertEqual(at["own"], 4 * (1000 * 32 * 2 + 32 * 4))
        self.assertEqual(at["mla"], 4 * 3000 * 32 * 2)
        self.assertEqual(at["mha"], 4 * 3000 * 2 * 4 * 16 * 2)

    def test_plots_are_well_formed(self):
        done = quipu("cost", config(), "--context", "1k,64k", "--plot", "costs.svg")
        self.assertEqual(done.returncode, 0, done.stderr)
        picture = ElementTree.parse(cli_test.FOLDER / "costs.svg").getroot()
        words = " ".join(picture.itertext())
        for expected in ("State of one sequence", "Decode: bytes moved per token", "MTLA s=3 + MoD", "64k"):
            self.assertIn(expected, words)
        if shutil.which("rsvg-convert"):
            self.assertEqual(quipu("cost", config(), "--plot", "costs.png").returncode, 0)
            self.assertEqual((cli_test.FOLDER / "costs.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        line = self.refused(1, "cost", config(), "--plot", "costs2.png", PATH="/nowhere")
        self.assertIn("librsvg2-bin", line)
        self.assertFalse((cli_test.FOLDER / "costs2.png").exists())
        self.refused(2, "cost", config(), "--plot", "costs.gif")

    def test_bad_questions_are_refused(self):
        self.refused(2, "cost", config(), "--context", "0")
        self.refused(2, "cost", config(), "--context", "1G")
        self.refused(2, "cost")
        self.refused(3, "cost", "absent.json")
        bad = {"room": "latent", "heads": 4, "latent_rank": 0, "nope_dim": 16, "rope_dim": 8, "value_dim": 16,
               "latent_norm": "rms", "norm_epsilon": 1e-6, "rope_theta": 10000.0}
        self.assertIn("latent_rank", self.refused(3, "cost", config(attention=bad)))


class BenchRooms(Case):
    def test_measures_what_was_asked_for_and_writes_it_down(self):
        done = quipu("bench-rooms", "--shape", config(), "--context", "64,512", "--batch", "1,2", "--rooms", "mha,mtla3,infini-linear",
                     "--segment", "128", "--prompt", "256", "--json", "rooms.json", "--plot", "rooms.svg")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("random rows", done.stdout)
        self.assertLessEqual(max(len(line) for line in done.stdout.splitlines()), 100, done.stdout)
        report = json.loads((cli_test.FOLDER / "rooms.json").read_text())
        self.assertEqual(len(report["cases"]), 6 * 4)   # three memories, each also with mixture of depths
        for case in report["cases"]:
            self.assertNotIn("skipped", case)
            self.assertGreater(case["decode_tokens_per_second"]["median"], 0)
            self.assertGreater(case["prompt_tokens_per_second"], 0)
            self.assertGreaterEqual(case["peak_bytes"], case["held_bytes"])
            if case["mixture_of_depths"]:
                self.assertTrue(0.02 < case["routed_share"] < 0.3, case)
            else:
                self.assertEqual(case["routed_share"], 1)
        mha = [c for c in report["cases"] if c["key"] == "mha" and c["context"] == 512]
        self.assertEqual({c["state_bytes"] for c in mha}, {4 * 2 * 4 * 16 * 2 * 512})
        ElementTree.parse(cli_test.FOLDER / "rooms.svg")

    def test_a_sweep_in_parts_is_one_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "rooms.json"
            part = ["bench-rooms", "--shape", config(), "--context", "64", "--batch", "1", "--no-depths", "--json", path, "--add"]
            quipu(*part, "--rooms", "mha")
            first = json.loads(path.read_text())["cases"]
            quipu(*part, "--rooms", "mqa")
            both = json.loads(path.read_text())["cases"]
            self.assertEqual([case["key"] for case in both], ["mha", "mqa"])
            self.assertEqual(both[0], first[0])
            quipu(*part, "--rooms", "mha")   # measured again: replaced
            self.assertEqual(sorted(case["key"] for case in json.loads(path.read_text())["cases"]), ["mha", "mqa"])

            def said(code, *more):
                done = subprocess.run([cli_test.PROGRAM, *map(str, part), "--rooms", "mha", *more], capture_output=True, text=True)
                self.assertEqual(done.returncode, code, done.stderr)
                return done.stdout + done.stderr

            self.assertIn("cache_type f16, this run of q8_0", said(2, "--cache-type", "q8_0"))
            path.write_text("[1]")
            self.assertIn("its fields are not those", said(3))
            path.write_text('{"shape": ')
            self.assertIn("no JSON at byte 11", said(3))
        self.refused(2, "bench-rooms", "--add")

    def test_says_what_it_leaves_out_and_why(self):
        done = quipu("bench-rooms", "--shape", config(), "--context", "64,1M", "--batch", "1", "--rooms", "mha", "--no-depths",
                     "--memory", "64", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        first, second = json.loads(done.stdout)["cases"]
        self.assertNotIn("skipped", first)
        self.assertRegex(second["skipped"], r"needs .* the limit is")

    def test_bad_questions_are_refused(self):
        self.assertIn("mtla3", self.refused(2, "bench-rooms", "--rooms", "mtla5"))
        self.assertIn("smollm2", self.refused(2, "bench-rooms", "--shape", "huge"))
        self.refused(2, "bench-rooms", "--batch", "0")
        self.refused(2, "bench-rooms", "--png", "x.jpg")

    def test_interrupt_keeps_what_was_measured(self):
        running = subprocess.Popen(
            [cli_test.PROGRAM, "bench-rooms", "--shape", str(config()), "--context", "1k,4k,16k", "--batch", "1,4", "--json",
             "cut.json"],
            cwd=cli_test.FOLDER, env=cli_test.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        time.sleep(3)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=cli_test.TIMEOUT)
        self.assertEqual(running.returncode, 1, err)
        self.assertIn("Interrupted", out)
        self.assertTrue(json.loads((cli_test.FOLDER / "cut.json").read_text())["interrupted"])


class Reproduce(Case):
    def test_lists_what_there_is(self):
        self.assertIn("costs", quipu("reproduce", "--list").stdout)
        listed = {one["name"]: one["figures"] for one in json.loads(quipu("reproduce", "--list", "--json").stdout)}
        self.assertEqual(set(listed), {"costs", "variants", "depths", "passkey"})
        for figure in listed["costs"]:
            self.assertLessEqual({"claim", "published", "ours", "unit", "holds", "command", "commit", "date"}, set(figure))

    def test_names_that_are_not_known_are_refused(self):
        self.assertIn("did you mean costs?", self.refused(2, "reproduce", "cots"))
        self.refused(2, "reproduce")


if __name__ == "__main__":
    cli_test.main()
