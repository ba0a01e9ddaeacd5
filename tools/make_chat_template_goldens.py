#!/usr/bin/env python3
"""Renders the chat-template test battery with Jinja 3.1 and writes what the C++ interpreter must reproduce.

    python3 tools/make_chat_template_goldens.py [--shared ../shared] [--gguf model.gguf]

The environment is the one in which Hugging Face renders chat templates: the immutable sandbox with trim_blocks and
lstrip_blocks, loop controls, a `generation` tag, tojson without HTML escaping, raise_exception and strftime_now.

Writes under src/text/jinja/testdata/:
  snippets.json       small pieces of the language: [{source, variables, output | raises}]
  conversations.json  templates x conversations: outputs only once per distinct text
  real_templates.json outputs of templates found in --shared/data/tokenizers and --gguf; the templates are not copied,
                      only the SHA-256 of their text, so the test can tell whether it reads the same ones
"""
import argparse
import datetime
import hashlib
import json
import pathlib
import struct
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from chat_template_battery import CONVERSATIONS, SNIPPETS, TEMPLATES  # noqa: E402

NOW = datetime.datetime(2025, 3, 7, 14, 5, 9)
ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "src/text/jinja/testdata"


class Generation(Extension):
    """{% generation %}...{% endgeneration %} marks assistant text for training; at inference it only groups."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


ENV = environment()


def render(source, variables):
    """{"output": text} or {"raises": name of the exception}."""
    try:
        # Copies, so that no rendering can reach another's data.
        return {"output": ENV.from_string(source).render(**json.loads(json.dumps(variables)))}
    except Exception as error:  # every refusal counts; which one is the test's business only as a class
        return {"raises": type(error).__name__}


def conversation_variables(conversation):
    variables = {"messages": conversation["messages"], "tools": conversation.get("tools"), "documents": None,
                 "add_generation_prompt": conversation.get("add_generation_prompt", True),
                 "bos_token": "<s>", "eos_token": "</s>"}
    variables.update(conversation.get("variables", {}))
    return variables


def render_all(source):
    return [render(source, conversation_variables(c)) for c in CONVERSATIONS]


def gguf_chat_template(path):
    """The string after the key; enough for a well-formed file."""
    key = b"tokenizer.chat_template"
    data = path.read_bytes()[:64 << 20]
    at = data.find(key) + len(key)
    kind, size = struct.unpack("<IQ", data[at:at + 12])
    assert kind == 8, "tokenizer.chat_template is not a string"
    return data[at + 12:at + 12 + size].decode("utf-8")


def real_templates(shared, gguf):
    found = {}
    for config in sorted((shared / "data/tokenizers").glob("*/tokenizer_config.json")):
        template = json.loads(config.read_text())["chat_template"]
        found[config.parent.name] = template
    if gguf:
        found["smollm2_gguf"] = gguf_chat_template(gguf)
    return found


def write(name, value):
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), indent=0)
    (OUT / name).write_text(text + "\n")
    print(f"{name}: {len(text)} bytes")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared")
    arguments.add_argument("--gguf", type=pathlib.Path)
    arguments = arguments.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)

    snippets = [{"source": source, "variables": variables, **render(source, variables)} for source, variables in SNIPPETS]
    write("snippets.json", snippets)
    write("conversations.json", {
        "conversations": [conversation_variables(c) for c in CONVERSATIONS],
        "templates": [{"name": n, "source": s, "results": render_all(s)} for n, s in TEMPLATES.items()]})
    write("real_templates.json", [
        {"name": name, "sha256": hashlib.sha256(source.encode()).hexdigest(), "bytes": len(source.encode()), "results": render_all(source)}
        for name, source in real_templates(arguments.shared, arguments.gguf).items()])
    raised = sum("raises" in s for s in snippets)
    print(f"{len(snippets)} snippets ({raised} raise), {len(TEMPLATES)} templates x {len(CONVERSATIONS)} conversations, "
          f"jinja2 {jinja2.__version__}")


if __name__ == "__main__":
    main()
