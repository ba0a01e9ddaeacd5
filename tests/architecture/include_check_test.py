#!/usr/bin/env python3
"""include_check.py on small trees with one planted fault each: a check that cannot fail checks nothing."""
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from include_check import check  # noqa: E402

HEADERS = ["base/result.h", "tensor/view.h", "ops/backend.h", "attention/attention.h", "attention/shared/rope.h",
           "attention/latent/latent.h", "attention/infini/infini.h", "backend/cpu/cpu.h", "backend/reference/reference.h",
           "blocks/norm.h", "formats/gguf.h", "text/tokenizer.h", "text/regex.h", "model/model.h", "generate/session.h",
           "engine/engine.h"]


def faults_of(files):
    """The faults of a tree of one-line headers plus `files` (path: text)."""
    with tempfile.TemporaryDirectory() as root:
        tree = {"src/" + header: "#pragma once\n" for header in HEADERS}
        tree.update(files)
        for path, text in tree.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(text)
        return check(root)


def faults_of_include(path, header):
    return faults_of({path: f'#include "{header}"\n'})


class IncludeCheck(unittest.TestCase):
    def test_the_graph_allows_what_the_design_allows(self):
        for path, header in [
                ("src/tensor/a.cc", "base/result.h"), ("src/ops/a.cc", "tensor/view.h"),
                ("src/backend/cpu/a.cc", "ops/backend.h"), ("src/attention/latent/a.cc", "attention/shared/rope.h"),
                ("src/attention/latent/a.cc", "attention/attention.h"), ("src/attention/latent/a.cc", "attention/latent/latent.h"),
                ("src/model/a.cc", "formats/gguf.h"), ("src/generate/a.cc", "model/model.h"),
                ("src/engine/a.cc", "backend/cpu/cpu.h"), ("src/engine/a.cc", "generate/session.h"),
                ("apps/cli/a.cc", "engine/engine.h"), ("apps/cli/a.cc", "base/result.h"), ("apps/cli/a.cc", "text/tokenizer.h"),
                ("src/attention/a_test.cc", "backend/reference/reference.h"), ("src/blocks/a_test.cc", "backend/cpu/cpu.h"),
                ("src/attention/latent/a_test.cc", "attention/infini/infini.h"), ("bench/a.cc", "backend/cpu/cpu.h")]:
            self.assertEqual(faults_of_include(path, header), [], (path, header))

    def test_the_graph_refuses_the_rest(self):
        for path, header in [
                ("src/base/a.cc", "tensor/view.h"), ("src/tensor/a.h", "ops/backend.h"), ("src/ops/a.cc", "backend/cpu/cpu.h"),
                ("src/backend/cpu/a.cc", "backend/reference/reference.h"), ("src/backend/cpu/a.cc", "attention/attention.h"),
                ("src/attention/a.cc", "attention/latent/latent.h"), ("src/attention/shared/a.cc", "attention/latent/latent.h"),
                ("src/attention/latent/a.cc", "attention/infini/infini.h"), ("src/attention/latent/a.cc", "backend/cpu/cpu.h"),
                ("src/attention/latent/a.cc", "model/model.h"), ("src/blocks/a.cc", "attention/latent/latent.h"),
                ("src/model/a.cc", "backend/reference/reference.h"), ("src/model/a.cc", "generate/session.h"),
                ("src/formats/a.cc", "ops/backend.h"), ("src/text/a.cc", "formats/gguf.h"),
                ("src/generate/a.cc", "engine/engine.h"), ("src/generate/a.cc", "backend/cpu/cpu.h"),
                ("apps/cli/a.cc", "model/model.h"), ("apps/cli/a.cc", "text/regex.h"), ("apps/cli/a.cc", "backend/cpu/cpu.h"),
                ("src/ops/a_test.cc", "model/model.h"), ("src/formats/a_test.cc", "text/tokenizer.h")]:
            faults = faults_of_include(path, header)
            self.assertEqual(len(faults), 1, (path, header, faults))
            self.assertIn(path + ":1", faults[0])

    def test_unknown_layers_and_headers_are_faults(self):
        self.assertIn("not in the graph", faults_of({"src/cache/a.h": ""})[0])
        self.assertIn("lies in no layer", faults_of({"src/a.h": ""})[0])
        self.assertIn("which is not in src/", faults_of_include("src/base/a.cc", "base/gone.h")[0])
        self.assertIn("rooted at src/", faults_of_include("src/base/a.cc", "../tensor/view.h")[0])

    def test_long_headers_and_empty_names_are_faults(self):
        self.assertEqual(faults_of({"src/base/a.h": "\n" * 400}), [])
        self.assertIn("401 lines", faults_of({"src/base/a.h": "\n" * 401})[0])
        for path in ("src/base/utils.h", "src/base/string_utils.cc", "src/base/helpers/a.h", "apps/cli/misc.cc",
                     "src/base/common.h", "bench/test_helper.cc"):
            self.assertTrue(any("says nothing" in fault for fault in faults_of({path: ""})), path)
        self.assertEqual(faults_of({"src/base/common_prefix.h": ""}), [])
        self.assertIn("json_fwd", faults_of({"src/base/a.h": "#include <nlohmann/json.hpp>\n"})[0])

    def test_link_lists_obey_the_graph_too(self):
        libraries = {"src/base/CMakeLists.txt": "quipu_library(quipu_base\n  SOURCES a.cc\n  LINKS Threads::Threads)\n",
                     "src/ops/CMakeLists.txt": "quipu_library(quipu_ops SOURCES a.cc LINKS quipu_base)\n"}
        self.assertEqual(faults_of(libraries), [])
        libraries["src/base/CMakeLists.txt"] = "quipu_library(quipu_base SOURCES a.cc PRIVATE_LINKS quipu_ops)  # why\n"
        self.assertIn("quipu_base may not link quipu_ops", faults_of(libraries)[0])


if __name__ == "__main__":
    unittest.main()
