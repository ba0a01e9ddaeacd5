// JsonObject: reads the values of one JSON object by key, with bounds and the path to it in messages.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>

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
  Result<void> only(std::span<const std::string_view> known) const;

  // null counts as absent: transformers writes it for "not set".
  bool has(const char* key) const;
  const nlohmann::json& at(const char* key) const;   // has(key)
  JsonObject child(const char* key) const;           // of at(key), which is an object
  Error error(const char* key, const std::string& what) const;

  Result<int64_t> integer(const char* key, int64_t low, int64_t high) const;
  Result<int64_t> integer_or(const char* key, int64_t low, int64_t high, int64_t otherwise) const;
  // Above 0 and finite.
  Result<double> number(const char* key) const;
  Result<double> number_or(const char* key, double otherwise) const;
  Result<bool> boolean_or(const char* key, bool otherwise) const;
  Result<std::string> text(const char* key) const;
  Result<JsonObject> object(const char* key) const;

  // A value for messages.
  static std::string shown(const nlohmann::json& value);

 private:
  std::string file_, path_;
  const nlohmann::json& object_;
};

}  // namespace quipu
