// Reads call arguments in the order of the Python signature they imitate.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja/operators.h"
#include "text/jinja/value.h"

namespace quipu::jinja {

class ArgumentReader {
 public:
  // `what`: the function's name for messages, e.g. "filter replace".
  ArgumentReader(std::string what, const Arguments& arguments) : what_(std::move(what)), arguments_(arguments) {}

  // The next parameter, by position or by name; null when not given.
  const Value* next(std::string_view name) {
    if (position_ < arguments_.positional.size()) return &arguments_.positional[position_++];
    for (const auto& [given, value] : arguments_.named) {
      if (given == name) {
        ++named_read_;
        return &value;
      }
    }
    return nullptr;
  }
  Value required(std::string_view name) {
    const Value* value = next(name);
    if (!value) fail(what_ + " needs the argument '" + std::string(name) + "'");
    return *value;
  }
  Value optional(std::string_view name, const Value& otherwise) {
    const Value* value = next(name);
    return value ? *value : otherwise;
  }
  bool flag(std::string_view name, bool otherwise) { return truth(optional(name, Value::of(otherwise))); }
  int64_t integer(std::string_view name, int64_t otherwise) {
    const Value* value = next(name);
    return value ? small_int(*value, what_ + " argument '" + std::string(name) + "'") : otherwise;
  }
  const std::string& text(std::string_view name) { return as_text(name, required(name)); }
  // The string's bytes live in the heap, so the reference outlives the reader.
  const std::string& as_text(std::string_view name, const Value& value) const {
    if (!value.is_string()) {
      fail(what_ + " argument '" + std::string(name) + "' must be a string, found " + std::string(type_name(value)));
    }
    return value.string->bytes;
  }
  // After the last parameter: nothing may be left over.
  void finish() const {
    if (position_ < arguments_.positional.size()) fail(what_ + " takes fewer arguments than were given");
    if (named_read_ < arguments_.named.size()) fail(what_ + " does not take all of the named arguments given");
  }
  const std::string& what() const { return what_; }

 private:
  std::string what_;
  const Arguments& arguments_;
  size_t position_ = 0, named_read_ = 0;
};

}  // namespace quipu::jinja
