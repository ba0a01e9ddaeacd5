#include "model/json_object.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/byte_reader.h"
#include "base/near_word.h"

namespace quipu {

Result<void> JsonObject::only(std::span<const std::string_view> known) const {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string near = nearest_word(key, std::vector<std::string>(known.begin(), known.end()));
    return error(printable(key).c_str(), "is no key known here" + (near.empty() ? "" : "; did you mean " + near + "?"));
  }
  return {};
}

bool JsonObject::has(const char* key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

const nlohmann::json& JsonObject::at(const char* key) const { return *object_.find(key); }

JsonObject JsonObject::child(const char* key) const { return JsonObject(file_, path_ + key + ".", at(key)); }

Error JsonObject::error(const char* key, const std::string& what) const {
  return bad_input(file_ + ": " + path_ + key + " " + what);
}

Result<int64_t> JsonObject::integer(const char* key, int64_t low, int64_t high) const {
  if (!has(key)) return error(key, "is missing");
  const nlohmann::json& value = at(key);
  if (!value.is_number_integer()) return error(key, "is " + shown(value) + ", expected an integer");
  const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (huge || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    return error(key, "is " + shown(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value.get<int64_t>();
}

Result<int64_t> JsonObject::integer_or(const char* key, int64_t low, int64_t high, int64_t otherwise) const {
  if (!has(key)) return otherwise;
  return integer(key, low, high);
}

Result<double> JsonObject::number(const char* key) const {
  if (!has(key)) return error(key, "is missing");
  const nlohmann::json& value = at(key);
  if (!value.is_number()) return error(key, "is " + shown(value) + ", expected a number");
  const double number = value.get<double>();
  if (!(std::isfinite(number) && number > 0)) return error(key, "is " + shown(value) + ", expected a number above 0");
  return number;
}

Result<double> JsonObject::number_or(const char* key, double otherwise) const {
  if (!has(key)) return otherwise;
  return number(key);
}

Result<bool> JsonObject::boolean_or(const char* key, bool otherwise) const {
  if (!has(key)) return otherwise;
  if (!at(key).is_boolean()) return error(key, "is " + shown(at(key)) + ", expected true or false");
  return at(key).get<bool>();
}

Result<std::string> JsonObject::text(const char* key) const {
  if (!has(key)) return error(key, "is missing");
  if (!at(key).is_string()) return error(key, "is " + shown(at(key)) + ", expected a string");
  return at(key).get<std::string>();
}

Result<JsonObject> JsonObject::object(const char* key) const {
  if (!has(key)) return error(key, "is missing");
  if (!at(key).is_object()) return error(key, "is " + shown(at(key)) + ", expected an object");
  return child(key);
}

std::string JsonObject::shown(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  return printable(value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

}  // namespace quipu
