// GgufKeys: reads the metadata keys of one architecture, "<architecture>.<rest>", with bounds.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf/metadata.h"
#include "model/config.h"

namespace quipu {

// Reads keys of one architecture.
class GgufKeys {
 public:
  GgufKeys(const GgufMetadata& metadata, std::string_view architecture) : metadata_(metadata), prefix_(architecture) {}

  std::string key(std::string_view rest) const { return prefix_ + "." + std::string(rest); }
  bool has(std::string_view rest) const { return metadata_.has(key(rest)); }
  Error error(std::string_view rest, const std::string& what) const { return metadata_.error(key(rest), what); }

  Result<int64_t> integer(std::string_view rest, int64_t low, int64_t high) const {
    ASSIGN_OR_RETURN(const int64_t value, metadata_.require_i64(key(rest)));
    if (value < low || value > high) {
      return error(rest,
                   "is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
    }
    return value;
  }
  Result<int64_t> integer_or(std::string_view rest, int64_t low, int64_t high, int64_t otherwise) const {
    if (!has(rest)) return otherwise;
    return integer(rest, low, high);
  }
  // Above 0 and finite.
  Result<double> number(std::string_view rest) const {
    ASSIGN_OR_RETURN(const float value, metadata_.require_f32(key(rest)));
    if (!(std::isfinite(value) && value > 0)) {
      return error(rest, "is " + std::to_string(value) + ", expected a number above 0");
    }
    return static_cast<double>(value);
  }
  Result<double> number_or(std::string_view rest, double otherwise) const {
    if (!has(rest)) return otherwise;
    return number(rest);
  }
  // One number for all layers, or an array with one a layer.
  Result<std::vector<int64_t>> per_layer(std::string_view rest, int64_t layers, int64_t low, int64_t high) const {
    std::vector<int64_t> values;
    const GgufValue* value = metadata_.find(key(rest));
    if (value != nullptr && value->is_array()) {
      ASSIGN_OR_RETURN(const GgufNumbers numbers, metadata_.require_integers(key(rest)));
      if (numbers.size() != static_cast<uint64_t>(layers)) {
        return error(rest, "has " + std::to_string(numbers.size()) + " entries, expected one for each of " +
                               std::to_string(layers) + " layers");
      }
      for (uint64_t i = 0; i < numbers.size(); ++i) values.push_back(numbers.integer(i));
    } else {
      ASSIGN_OR_RETURN(const int64_t one, integer(rest, low, high));
      values.assign(static_cast<size_t>(layers), one);
    }
    for (const int64_t one : values) {
      if (one < low || one > high) {
        return error(
            rest, "holds " + std::to_string(one) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
      }
    }
    return values;
  }
  const GgufMetadata& metadata() const { return metadata_; }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

// Layers of general.architecture "deepseek2": DeepSeek-V2 and -V3, in the layouts of before and after April 2025.
Result<void> read_deepseek2_layers(ModelConfig& config, const GgufKeys& keys, int64_t layers,
                                   const GgufModelFacts& facts);

}  // namespace quipu
