#!/usr/bin/env python3
"""Adds up what ./check left in a folder and prints the closing line.

For every PRESET.junit (ctest's report) and PRESET/*.xml (GoogleTest's, one per test program): the tests of a program
that wrote its own report are counted one by one; any other ctest entry counts as one, and so does a fuzz target (a line
of fuzz_passed). Skips are listed with their reasons.
Exit code 1 when anything failed, or when nothing ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def googletest_report(path):
    """(passed, failed names, [(name, reason)]) of one GoogleTest XML file, or None when it is cut short."""
    passed, failed, skipped = 0, [], []
    try:
        cases = ElementTree.parse(path).getroot().iter("testcase")
        for case in cases:
            name = f"{case.get('classname')}.{case.get('name')}"
            skip = case.find("skipped")
            if case.find("failure") is not None:
                failed.append(name)
            elif skip is not None:
                skipped.append((name, (skip.get("message") or "no reason given").strip().splitlines()[-1]))
            elif case.get("status") == "run":
                passed += 1
    except ElementTree.ParseError:
        return None
    return passed, failed, skipped


def main():
    folder = pathlib.Path(sys.argv[1])
    passed, failed, skipped = 0, [], []
    for junit in sorted(folder.glob("*.junit")):
        preset = junit.stem
        for entry in ElementTree.parse(junit).getroot().iter("testcase"):
            name, status = entry.get("name"), entry.get("status")
            report_path = folder / preset / f"{name}.xml"
            report = googletest_report(report_path) if report_path.exists() else None
            if report is not None:
                passed += report[0]
                failed += [f"{preset}: {test}" for test in report[1]]
                skipped += [(f"{preset}: {test}", reason) for test, reason in report[2]]
                # A program can pass its tests and still fail, say by a leak at its end.
                if status == "fail" and not report[1]:
                    failed.append(f"{preset}: {name} (the program itself)")
            elif status == "run":
                passed += 1
            elif status == "fail":
                failed.append(f"{preset}: {name}")
            else:
                output = (entry.findtext("system-out") or "").strip().splitlines()
                skipped.append((f"{preset}: {name}", output[-1] if output else status))
    fuzzed = folder / "fuzz_passed"
    if fuzzed.exists():
        passed += len(fuzzed.read_text().splitlines())
    stages = folder / "failed_stages"
    if stages.exists():
        failed += stages.read_text().splitlines()
    for test, reason in skipped:
        print(f"skipped  {test}: {reason}")
    for test in failed:
        print(f"FAILED   {test}")
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
