// JsonFields: typed, named access to one JSON object, with messages that say where in the file a field is wrong.
// Internal to text/; includes simdjson.
#pragma once

#include <simdjson.h>

#include <cmath>
#include <string>
#include <string_view>

#include "base/byte_reader.h"
#include "base/result.h"

namespace quipu {

class JsonFields {
 public:
  using Element = simdjson::dom::element;

  // where: "tokenizer.json: model". The document must outlive it.
  static Result<JsonFields> of(Element element, std::string where) {
    simdjson::dom::object object;
    if (element.get(object) != simdjson::SUCCESS) return bad_input(where + " is " + kind(element) + ", expected an object");
    return JsonFields(object, std::move(where));
  }

  const std::string& where() const { return where_; }
  std::string where(std::string_view key) const { return where_ + "." + std::string(key); }
  simdjson::dom::object object() const { return object_; }

  bool has(std::string_view key) const {
    Element element;
    return object_.at_key(key).get(element) == simdjson::SUCCESS && !element.is_null();
  }

  Result<Element> element(std::string_view key) const {
    Element element;
    if (object_.at_key(key).get(element) != simdjson::SUCCESS) return bad_input(where(key) + " is missing");
    return element;
  }
  Result<std::string_view> string(std::string_view key) const {
    ASSIGN_OR_RETURN(const Element found, element(key));
    std::string_view value;
    if (found.get(value) != simdjson::SUCCESS) return wrong(key, found, "a string");
    return value;
  }
  Result<bool> boolean(std::string_view key) const {
    ASSIGN_OR_RETURN(const Element found, element(key));
    bool value = false;
    if (found.get(value) != simdjson::SUCCESS) return wrong(key, found, "true or false");
    return value;
  }
  Result<bool> boolean_or(std::string_view key, bool absent) const { return has(key) ? boolean(key) : Result<bool>(absent); }
  Result<int64_t> integer(std::string_view key) const {
    ASSIGN_OR_RETURN(const Element found, element(key));
    int64_t value = 0;
    if (found.get(value) != simdjson::SUCCESS) return wrong(key, found, "a whole number below 2^63");
    return value;
  }
  Result<simdjson::dom::array> array(std::string_view key) const {
    ASSIGN_OR_RETURN(const Element found, element(key));
    simdjson::dom::array value;
    if (found.get(value) != simdjson::SUCCESS) return wrong(key, found, "an array");
    return value;
  }
  Result<JsonFields> fields(std::string_view key) const {
    ASSIGN_OR_RETURN(const Element found, element(key));
    return of(found, where(key));
  }
  // The string under "type".
  Result<std::string> type() const {
    ASSIGN_OR_RETURN(const std::string_view name, string("type"));
    return std::string(name);
  }

  static std::string kind(Element element) {
    switch (element.type()) {
      case simdjson::dom::element_type::ARRAY: return "an array";
      case simdjson::dom::element_type::OBJECT: return "an object";
      case simdjson::dom::element_type::STRING: return "a string";
      case simdjson::dom::element_type::BOOL: return "true or false";
      case simdjson::dom::element_type::NULL_VALUE: return "null";
      default: return "a number";
    }
  }

 private:
  JsonFields(simdjson::dom::object object, std::string where) : object_(object), where_(std::move(where)) {}
  Error wrong(std::string_view key, Element found, std::string_view expected) const {
    return bad_input(where(key) + " is " + kind(found) + ", expected " + std::string(expected));
  }
  simdjson::dom::object object_;
  std::string where_;
};

}  // namespace quipu
