// The interpreter's calls: macros, global functions and `loop`.
#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/arguments.h"
#include "text/jinja/attributes.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/operators.h"
#include "text/jinja/python_text.h"

namespace quipu::jinja {

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  heap_.charge_steps(static_cast<int64_t>(arguments.positional.size()) + 1);
  if (callee.kind == Kind::kLoop) return call_loop(*callee.loop, "", arguments);
  if (callee.is_undefined()) {
    fail(callee.missing_name ? "'" + *callee.missing_name + "' is undefined, so it cannot be called" : "called value is undefined");
  }
  if (callee.kind != Kind::kCallable) fail("a " + std::string(type_name(callee)) + " cannot be called");
  const CallableObject& callable = *callee.callable;
  switch (callable.type) {
    case CallableObject::Type::kFunction: return call_function(callable.name, arguments);
    case CallableObject::Type::kMacro: return call_macro(callable, arguments);
    case CallableObject::Type::kMethod: break;
  }
  if (callable.self.kind == Kind::kLoop) return call_loop(*callable.self.loop, callable.name, arguments);
  return call_method(heap_, callable.self, callable.name, arguments);
}

Scope* Interpreter::bind_parameters(const CallableObject& callable, const Arguments& arguments) {
  const Statement& macro = *callable.macro;
  Scope* scope = heap_.scope(callable.scope);
  const size_t count = macro.assignments.size();
  std::vector<bool> used(arguments.named.size());
  for (size_t i = 0; i < count; ++i) {
    const auto& [name, fallback] = macro.assignments[i];
    const Value* value = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
    for (size_t k = 0; !value && k < arguments.named.size(); ++k) {
      if (arguments.named[k].first != name->text) continue;
      value = &arguments.named[k].second;
      used[k] = true;
    }
    heap_.charge_steps(1 + static_cast<int64_t>(arguments.named.size()) / 8);
    if (value) define(scope, name->text, *value);
    else define(scope, name->text, fallback ? evaluate(*fallback, scope) : Value::undefined(&name->text));
  }
  std::vector<Value> rest;
  for (size_t i = count; i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
  if (!rest.empty() && !macro.reads_varargs) {
    fail("macro '" + macro.text + "' takes at most " + std::to_string(count) + " arguments, " +
         std::to_string(arguments.positional.size()) + " were given");
  }
  if (macro.reads_varargs) define(scope, "varargs", heap_.list(std::move(rest), Flavor::kTuple));
  DictObject* named = macro.reads_kwargs ? heap_.dict() : nullptr;
  if (macro.reads_caller) define(scope, "caller", Value::undefined());
  for (size_t k = 0; k < arguments.named.size(); ++k) {
    const auto& [name, value] = arguments.named[k];
    if (used[k]) continue;
    if (name == "caller" && macro.reads_caller) define(scope, "caller", value);
    else if (named && name != "caller") heap_.set_item(named, heap_.string(std::string(name)), value);
    else fail("macro '" + macro.text + "' takes no argument named " + quoted(name.substr(0, byte_offset(name, 40))));
  }
  if (named) define(scope, "kwargs", Value::of(named));
  return scope;
}

Value Interpreter::call_macro(const CallableObject& callable, const Arguments& arguments) {
  if (calls_ >= heap_.limits().call_depth) fail("macros call each other deeper than " + std::to_string(heap_.limits().call_depth));
  ++calls_;
  Scope* scope = bind_parameters(callable, arguments);
  const Value text = heap_.string(capture(callable.macro->body, scope));
  --calls_;
  return text;
}

Value Interpreter::call_function(std::string_view name, const Arguments& arguments) {
  if (name == "range") return make_range(arguments);
  if (name == "namespace") return make_namespace(arguments);
  if (name == "strftime_now") return format_time(arguments);
  if (name == "raise_exception") {
    ArgumentReader reader("raise_exception", arguments);
    const std::string message = to_text(heap_, reader.required("message"));
    reader.finish();
    fail("the template refuses this conversation: " + message.substr(0, byte_offset(message, 500)));
  }
  DictObject* dict = heap_.dict();
  for (const Value& source : arguments.positional) {
    if (!source.is_dict() || arguments.positional.size() > 1) fail("dict() takes one dictionary and named arguments");
    for (const auto& [key, value] : source.dict->entries) heap_.set_item(dict, key, value);
  }
  for (const auto& [key, value] : arguments.named) heap_.set_item(dict, heap_.string(std::string(key)), value);
  return Value::of(dict);
}

Value Interpreter::make_range(const Arguments& arguments) {
  constexpr Int kMaxRange = 100000;   // the reference's sandbox has the same
  std::vector<Int> bounds;
  if (!arguments.named.empty()) fail("range() takes no named arguments");
  for (const Value& argument : arguments.positional) bounds.push_back(small_int(argument, "range() argument"));
  if (bounds.empty() || bounds.size() > 3) fail("range() takes 1 to 3 arguments");
  const Int start = bounds.size() > 1 ? bounds[0] : 0, stop = bounds.size() > 1 ? bounds[1] : bounds[0];
  const Int step = bounds.size() > 2 ? bounds[2] : 1;
  if (step == 0) fail("range() step cannot be zero");
  const Int span = step > 0 ? stop - start : start - stop, stride = step > 0 ? step : -step;
  const Int count = span <= 0 ? 0 : (span - 1) / stride + 1;
  if (count > kMaxRange) fail("range() of " + int_text(count) + " numbers, limit " + int_text(kMaxRange));
  std::vector<Value> items;
  for (Int i = 0; i < count; ++i) items.push_back(Value::of(start + i * step));
  return heap_.list(std::move(items), Flavor::kRange);
}

Value Interpreter::make_namespace(const Arguments& arguments) {
  NamespaceObject* made = heap_.name_space();
  for (const Value& source : arguments.positional) {
    if (!source.is_dict() || arguments.positional.size() > 1) fail("namespace() takes one dictionary and named arguments");
    for (const auto& [key, value] : source.dict->entries) {
      if (!key.is_string()) fail("the names in a namespace must be strings");
      heap_.set_attribute(made, key.string->bytes, value);
    }
  }
  for (const auto& [name, value] : arguments.named) heap_.set_attribute(made, name, value);
  return Value::of(made);
}

Value Interpreter::format_time(const Arguments& arguments) {
  ArgumentReader reader("strftime_now", arguments);
  const std::string& format = reader.text("format");
  reader.finish();
  if (format.size() > 200) fail("strftime_now: format is longer than 200 bytes");
  if (format.empty()) return heap_.string("");
  // The C library pads to any width it is told, so only plain conversions pass.
  for (size_t i = format.find('%'); i != std::string::npos; i = format.find('%', i + 2)) {
    if (i + 1 >= format.size() || std::string_view("aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZC%-").find(format[i + 1]) == std::string_view::npos) {
      fail("strftime_now: unsupported format " + quoted(format));
    }
    if (format[i + 1] == '-' && (i + 2 >= format.size() || std::string_view("demHIMSjklyUWV").find(format[i + 2]) == std::string_view::npos)) {
      fail("strftime_now: unsupported format " + quoted(format));
    }
  }
  const std::tm time = now_();
  char buffer[4096];
  const size_t size = std::strftime(buffer, sizeof buffer, format.c_str(), &time);
  return heap_.string(utf8_lossy(std::string_view(buffer, size)));
}

Value Interpreter::loop_attribute(LoopObject& loop, const std::string& name) {
  const auto remaining = [&]() {   // how many come after the current one
    if (!loop.statement->condition) return static_cast<Int>(loop.source.size()) - 1 - loop.index0;
    std::deque<Value> visited;
    while (const Value* next = peek(loop)) {
      visited.push_back(*next);
      loop.ahead.pop_front();
    }
    loop.ahead = std::move(visited);
    return static_cast<Int>(loop.ahead.size());
  };
  if (name == "index") return Value::of(loop.index0 + 1);
  if (name == "index0") return Value::of(loop.index0);
  if (name == "first") return Value::of(loop.index0 == 0);
  if (name == "last") return Value::of(peek(loop) == nullptr);
  if (name == "length") return Value::of(loop.index0 + 1 + remaining());
  if (name == "revindex") return Value::of(remaining() + 1);
  if (name == "revindex0") return Value::of(remaining());
  if (name == "depth") return Value::of(Int{loop.depth});
  if (name == "depth0") return Value::of(Int{loop.depth - 1});
  if (name == "previtem") return loop.has_previous ? loop.previous : Value::undefined(&name);
  if (name == "nextitem") {
    const Value* next = peek(loop);
    return next ? *next : Value::undefined(&name);
  }
  if (name == "cycle" || name == "changed") return heap_.method(Value::of(&loop), name);
  return Value::undefined(&name);
}

Value Interpreter::call_loop(LoopObject& loop, std::string_view method, const Arguments& arguments) {
  if (!arguments.named.empty()) fail("loop takes no named arguments");
  if (method == "cycle") {
    if (arguments.positional.empty()) fail("loop.cycle() needs something to cycle through");
    return arguments.positional[static_cast<size_t>(loop.index0 % static_cast<Int>(arguments.positional.size()))];
  }
  if (method == "changed") {
    bool changed = !loop.has_changed_key || loop.changed_key.size() != arguments.positional.size();
    for (size_t i = 0; !changed && i < arguments.positional.size(); ++i) {
      changed = !equal(heap_, loop.changed_key[i], arguments.positional[i]);
    }
    loop.has_changed_key = true;
    if (changed) loop.changed_key = arguments.positional;
    return Value::of(changed);
  }
  if (!loop.statement->recursive) fail("the loop must be marked 'recursive' to be called");
  if (arguments.positional.size() != 1) fail("loop() takes one argument");
  if (calls_ >= heap_.limits().call_depth) fail("loops call each other deeper than " + std::to_string(heap_.limits().call_depth));
  ++calls_;
  std::string buffer;
  std::string* const outer = std::exchange(out_, &buffer);
  execute_for(*loop.statement, loop.outer, arguments.positional[0], loop.depth + 1);
  out_ = outer;
  --calls_;
  return heap_.string(std::move(buffer));
}

}  // namespace quipu::jinja
