// JsonObject: reads the values of one JSON object by key, with bounds and the path to it in messages. For .cc files: it
// brings the JSON library along.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/byte_reader.h"
#include "base/near_word.h"
#include "base/result.h"

namespace quipu {

// One JSON object, with the path to it for messages: "config.json: rope_scaling.factor is ...".
class JsonObject {
 public:
  // path: "" or "rope_scaling.", before the key in messages. object must outlive this.
  JsonObject(std::string file, std::string path, const nlohmann::json& object)
      : file_(std::move(file)), path_(std::move(path)), object_(object) {}

  const std::string& file() const { return file_; }
  const std::string& path() const { return path_; }
  const nlohmann::json& json() const { return object_; }
  // An error that names the first key that is not among these, and the nearest one.
  Result<void> only(std::span<const std::string_view> known) const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      const std::string near = nearest_word(key, std::vector<std::string>(known.begin(), known.end()));
      return error(printable(key).c_str(),
                   "is no key known here" + (near.empty() ? "" : "; did you mean " + near + "?"));
    }
    return {};
  }
  // null counts as absent: transformers writes it for "not set".
  bool has(const char* key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
  }
  const nlohmann::json& at(const char* key) const { return *object_.find(key); }
  JsonObject child(const char* key) const { return JsonObject(file_, path_ + key + ".", at(key)); }
  Error error(const char* key, const std::string& what) const {
    return bad_input(file_ + ": " + path_ + key + " " + what);
  }

  Result<int64_t> integer(const char* key, int64_t low, int64_t high) const {
    if (!has(key)) return error(key, "is missing");
    const nlohmann::json& value = at(key);
    if (!value.is_number_integer()) return error(key, "is " + shown(value) + ", expected an integer");
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    if (huge || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      return error(key, "is " + shown(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
    }
    return value.get<int64_t>();
  }
  Result<int64_t> integer_or(const char* key, int64_t low, int64_t high, int64_t otherwise) const {
    if (!has(key)) return otherwise;
    return integer(key, low, high);
  }
  // Above 0 and finite.
  Result<double> number(const char* key) const {
    if (!has(key)) return error(key, "is missing");
    const nlohmann::json& value = at(key);
    if (!value.is_number()) return error(key, "is " + shown(value) + ", expected a number");
    const double number = value.get<double>();
    if (!(std::isfinite(number) && number > 0)) return error(key, "is " + shown(value) + ", expected a number above 0");
    return number;
  }
  Result<double> number_or(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    return number(key);
  }
  Result<bool> boolean_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) return error(key, "is " + shown(at(key)) + ", expected true or false");
    return at(key).get<bool>();
  }
  Result<std::string> text(const char* key) const {
    if (!has(key)) return error(key, "is missing");
    if (!at(key).is_string()) return error(key, "is " + shown(at(key)) + ", expected a string");
    return at(key).get<std::string>();
  }
  Result<JsonObject> object(const char* key) const {
    if (!has(key)) return error(key, "is missing");
    if (!at(key).is_object()) return error(key, "is " + shown(at(key)) + ", expected an object");
    return child(key);
  }

  // A value for messages.
  static std::string shown(const nlohmann::json& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return "an array";
    return printable(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
  }

 private:
  std::string file_, path_;
  const nlohmann::json& object_;
};

}  // namespace quipu
