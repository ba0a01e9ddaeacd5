#!/usr/bin/env python3
"""Holds the tree to the layer graph of docs/architecture.md, on #include lines and on the link lists of CMakeLists.txt.

Usage: include_check.py ROOT       exit 0 when clean, 1 with one line a fault.

Also: no header over 400 lines, no file or folder called utils, helpers, misc or common, JSON library kept out of headers.
A new folder in src/ must get its line in GRAPH, or the check fails: permission is given, not assumed.
"""
import os
import re
import sys

# layer: the layers it may include, itself excluded. Lowest first.
BELOW_MODEL = ["base", "tensor", "ops", "attention", "attention/shared", "blocks"]
ALL_MODEL = BELOW_MODEL + ["formats", "text", "model"]
GRAPH = {
    "base": [],
    "tensor": ["base"],
    "ops": ["base", "tensor"],
    "backend/*": ["base", "tensor", "ops"],
    "formats": ["base", "tensor"],
    "text": ["base", "tensor"],
    "attention": ["base", "tensor", "ops"],
    "attention/shared": ["base", "tensor", "ops", "attention"],
    "attention/*": ["base", "tensor", "ops", "attention", "attention/shared"],
    "blocks": ["base", "tensor", "ops", "attention", "attention/shared"],
    "model": BELOW_MODEL + ["formats", "text"],
    "generate": ALL_MODEL,
    "train": ALL_MODEL,
    "convert": ALL_MODEL,
    "engine": ALL_MODEL + ["generate", "train", "convert", "backend/*"],
}
# Programs see the public face, base, and the few headers whose types the public face hands out.
APPS_LAYERS = ["engine", "base"]
APPS_HEADERS = ["text/tokenizer.h", "text/chat_template.h", "tensor/dtype.h"]
# What tests may reach beyond their own layer, the layers below it and its siblings.
TEST_LAYERS = ["backend/reference", "backend/cpu", "formats"]

SOURCE = (".h", ".cc", ".def", ".inc", ".cu", ".cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
BAD_NAME = re.compile(r"^(.*_)?(utils?|helpers?|misc)(_.*)?$|^common$")
HEADER_LINES = 400


def layer_of(path):
    """The layer of a path relative to src/: "ops", "attention/shared", "backend/cpu"; None when there is none."""
    parts = path.split("/")
    if len(parts) < 2:
        return None
    if parts[0] in ("backend", "attention") and len(parts) > 2:
        return parts[0] + "/" + parts[1]
    return parts[0]


def rule_of(layer):
    """The key of GRAPH for a layer, None when the graph does not know it."""
    if layer in GRAPH:
        return layer
    family = layer.split("/")[0] + "/*" if "/" in layer else None
    return family if family in GRAPH else None


def matches(layer, allowed):
    return any(layer == a or (a.endswith("/*") and layer.startswith(a[:-1])) for a in allowed)


def is_test(path):
    return path.endswith(("_test.cc", "_for_test.h", "_fuzz.cc"))


def may_include(path, target):
    """Whether src-relative `path` may include src-relative `target`."""
    own, other = layer_of(path), layer_of(target)
    if own == other:
        return True
    rule = rule_of(own)
    allowed = list(GRAPH[rule])
    if is_test(path):
        allowed += TEST_LAYERS + ([rule] if rule.endswith("/*") else [])
        # A test may use what lies between its layer and those it may already use, such as attention/shared in attention/.
        if own == "attention":
            allowed.append("attention/shared")
    return matches(other, allowed)


def source_files(root, folder):
    for directory, folders, files in os.walk(os.path.join(root, folder)):
        folders[:] = sorted(f for f in folders if f not in ("build", "__pycache__", "golden", "corpus") and not f.startswith("."))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(directory, name), root).replace(os.sep, "/")


def check_names(root, faults):
    for folder in ("src", "apps", "bench", "tests", "tools", "cmake"):
        for path in source_files(root, folder):
            for part in path.split("/"):
                if BAD_NAME.match(part.split(".")[0].lower()):
                    faults.append(f"{path}: a name that says nothing ({part}); say what is in it")


def check_file(root, path, faults):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        lines = file.read().splitlines()
    if path.endswith((".h", ".cuh")) and len(lines) > HEADER_LINES:
        faults.append(f"{path}: {len(lines)} lines, a header has at most {HEADER_LINES}")
    in_src = path.startswith("src/")
    if in_src and layer_of(path[4:]) is None:
        faults.append(f"{path}: lies in no layer; sources belong in a folder of src/")
        return
    if in_src and rule_of(layer_of(path[4:])) is None:
        faults.append(f"{path}: layer {layer_of(path[4:])} is not in the graph of tests/architecture/include_check.py")
        return
    for number, line in enumerate(lines, 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        where, kind, name = f"{path}:{number}", found.group(1), found.group(2)
        if kind == "<":
            if name == "nlohmann/json.hpp" and path.endswith(".h"):
                faults.append(f"{where}: includes <{name}>; headers take <nlohmann/json_fwd.hpp>")
            continue
        check_include(root, path, where, name, faults)


def check_include(root, path, where, name, faults):
    if ".." in name.split("/"):
        faults.append(f'{where}: includes "{name}"; includes are rooted at src/')
        return
    beside = os.path.join(os.path.dirname(path), name)
    if not os.path.exists(os.path.join(root, "src", name)):
        rooted = os.path.join(path.split("/")[0], name)
        if not path.startswith("src/") and any(os.path.exists(os.path.join(root, own)) for own in (beside, rooted)):
            return   # programs, benchmarks and tests name their own files from beside or from their top folder
        faults.append(f'{where}: includes "{name}", which is not in src/')
        return
    if path.startswith("src/"):
        if not may_include(path[4:], name):
            faults.append(f'{where}: {layer_of(path[4:])} may not include "{name}"')
    elif path.startswith("apps/") and not is_test(path):
        if not (matches(layer_of(name), APPS_LAYERS) or name in APPS_HEADERS):
            faults.append(f'{where}: programs see engine/ and base/ only, not "{name}"')


LIBRARY = re.compile(r"quipu_library\(\s*(\w+)(.*?)\n?\)", re.S)


def check_links(root, faults):
    """A library's link list is its permission to include: it must not say more than the graph."""
    folder_of, links = {}, []
    for path in source_files(root, "src"):
        if not path.endswith("CMakeLists.txt"):
            continue
        with open(os.path.join(root, path), encoding="utf-8") as file:
            text = re.sub(r"#.*", "", file.read())
        for name, body in LIBRARY.findall(text):
            folder_of[name] = os.path.dirname(path)[4:] + "/x"
            linked = re.findall(r"\bquipu_\w+", " ".join(re.findall(r"LINKS\s+([^)]*)", body)))
            links.append((path, name, linked))
    for path, name, linked in links:
        for other in linked:
            if other in folder_of and not may_include(folder_of[name], folder_of[other]):
                faults.append(f"{path}: {name} may not link {other}")


def check(root):
    faults = []
    check_names(root, faults)
    for folder in ("src", "apps", "bench", "tests"):
        for path in source_files(root, folder):
            if path.endswith(SOURCE):
                check_file(root, path, faults)
    check_links(root, faults)
    return faults


def main():
    if len(sys.argv) != 2 or not os.path.isdir(os.path.join(sys.argv[1], "src")):
        print("usage: include_check.py ROOT (the folder that holds src/)", file=sys.stderr)
        return 2
    faults = check(sys.argv[1])
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
