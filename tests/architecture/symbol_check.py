#!/usr/bin/env python3
"""No portable object may hold instructions that only some machines have.

Usage: symbol_check.py ROOT BUILD       exit 0 clean, 1 with one line a fault, 77 when objdump or the machine is missing.

Looks at the house's static libraries in BUILD. Files from a folder called kernels/ may use AVX and AVX-512 in functions of
their own; a *weak* symbol (an inline function or template that several files emit) with such code is a fault even there:
the linker keeps one copy for the whole program and may keep that one.
"""
import glob
import os
import platform
import re
import shutil
import subprocess
import sys

VECTOR = re.compile(r"%[yz]mm\d|%tmm\d|\tv[a-z0-9]+\s.*%xmm")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
MEMBER = re.compile(r"^(\S+\.o):\s+file format")


def kernel_objects(root):
    """Names of the objects whose sources lie in a folder called kernels."""
    names = set()
    for directory, _, files in os.walk(os.path.join(root, "src")):
        if "kernels" in directory.split(os.sep):
            names.update(name + ".o" for name in files)
    return names


def weak_symbols(library):
    text = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    member, weak = "", set()
    for line in text.splitlines():
        if line.endswith(".o:"):
            member = line[:-1]
        fields = line.split()
        if len(fields) == 3 and fields[1] in "WVu":
            weak.add((member, fields[2]))
    return weak


def check_library(library, kernels):
    weak = weak_symbols(library)
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True).stdout
    member, function, faults = "", "", {}
    for line in text.splitlines():
        found = MEMBER.match(line)
        if found:
            member = found.group(1)
            continue
        found = FUNCTION.match(line)
        if found:
            function = found.group(1)
        elif VECTOR.search(line) and (member not in kernels or (member, function) in weak):
            why = "a symbol the linker may choose for the whole program" if member in kernels else "a portable file"
            faults.setdefault((member, function), f"{os.path.basename(library)}: {member}: {function} uses"
                                                  f" `{' '.join(line.split()[1:])}` in {why}")
    return list(faults.values())


def main():
    if len(sys.argv) != 3:
        print("usage: symbol_check.py ROOT BUILD", file=sys.stderr)
        return 2
    if platform.machine() not in ("x86_64", "AMD64") or not shutil.which("objdump") or not shutil.which("nm"):
        print("skipped: needs an x86-64 machine with objdump and nm")
        return 77
    kernels = kernel_objects(sys.argv[1])
    libraries = sorted(glob.glob(os.path.join(sys.argv[2], "src", "**", "libquipu_*.a"), recursive=True))
    if not libraries:
        print(f"no libraries in {sys.argv[2]}/src", file=sys.stderr)
        return 2
    faults = [fault for library in libraries for fault in check_library(library, kernels)]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
