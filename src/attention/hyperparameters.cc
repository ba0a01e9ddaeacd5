#include "attention/hyperparameters.h"

#include <cmath>
#include <sstream>

#include "base/byte_reader.h"
#include "base/near_word.h"

namespace quipu {
namespace {

template <class T>
std::string number_text(T value) {
  std::ostringstream text;
  text.precision(12);
  text << value;
  return text.str();
}

std::string value_text(const HyperParameters::Value& value) {
  struct Visitor {
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(int64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return number_text(v); }
    std::string operator()(const std::string& v) const { return "\"" + printable(v) + "\""; }
    std::string operator()(const std::vector<double>& v) const { return std::to_string(v.size()) + " numbers"; }
  };
  return std::visit(Visitor{}, value);
}

template <class T>
std::string range_text(std::string_view kind, T low, T high) {
  return std::string(kind) + " in [" + number_text(low) + ", " + number_text(high) + "]";
}

}  // namespace

const HyperParameters::Value* HyperParameters::find(std::string_view name) const {
  asked_.emplace(name);
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &found->second;
}

Result<void> HyperParameters::all_asked(std::string_view user) const {
  for (const auto& [name, value] : values_) {
    if (asked_.contains(name)) continue;
    const std::vector<std::string> known(asked_.begin(), asked_.end());
    const std::string near = nearest_word(name, known);
    return bad_input(origin_ + ": " + section_ + " setting " + printable(name) + " is not one that " + std::string(user) +
                     " reads with these settings" + (near.empty() ? "" : "; did you mean " + near + "?"));
  }
  return {};
}

Error HyperParameters::missing(std::string_view name) const {
  return bad_input(origin_ + ": " + section_ + " setting " + std::string(name) + " is missing");
}

Error HyperParameters::wrong(std::string_view name, std::string_view expected) const {
  return bad_input(origin_ + ": " + section_ + " setting " + std::string(name) + " is " + value_text(*find(name)) +
                   ", expected " + std::string(expected));
}

Result<int64_t> HyperParameters::integer(std::string_view name, int64_t low, int64_t high) const {
  const Value* value = find(name);
  if (value == nullptr) return missing(name);
  const int64_t* number = std::get_if<int64_t>(value);
  if (number == nullptr || *number < low || *number > high) return wrong(name, range_text("a whole number", low, high));
  return *number;
}

Result<double> HyperParameters::number(std::string_view name, double low, double high) const {
  const Value* value = find(name);
  if (value == nullptr) return missing(name);
  double number = std::nan("");
  if (const int64_t* whole = std::get_if<int64_t>(value)) number = static_cast<double>(*whole);
  if (const double* real = std::get_if<double>(value)) number = *real;
  if (!(number >= low && number <= high)) return wrong(name, range_text("a number", low, high));   // NaN lands here too
  return number;
}

Result<std::string> HyperParameters::text(std::string_view name) const {
  const Value* value = find(name);
  if (value == nullptr) return missing(name);
  const std::string* text = std::get_if<std::string>(value);
  if (text == nullptr) return wrong(name, "a text");
  return *text;
}

Result<bool> HyperParameters::boolean(std::string_view name) const {
  const Value* value = find(name);
  if (value == nullptr) return missing(name);
  const bool* flag = std::get_if<bool>(value);
  if (flag == nullptr) return wrong(name, "true or false");
  return *flag;
}

Result<std::vector<double>> HyperParameters::numbers(std::string_view name, size_t length) const {
  const Value* value = find(name);
  if (value == nullptr) return missing(name);
  const auto* list = std::get_if<std::vector<double>>(value);
  if (list == nullptr || list->size() != length) return wrong(name, std::to_string(length) + " numbers");
  for (size_t i = 0; i < length; ++i) {
    if (!std::isfinite((*list)[i])) {
      return bad_input(origin_ + ": " + section_ + " setting " + std::string(name) + "[" + std::to_string(i) + "] is " +
                       number_text((*list)[i]) + ", expected a finite number");
    }
  }
  return *list;
}

Result<int64_t> HyperParameters::integer_or(std::string_view name, int64_t low, int64_t high, int64_t otherwise) const {
  if (!has(name)) return otherwise;
  return integer(name, low, high);
}

Result<double> HyperParameters::number_or(std::string_view name, double low, double high, double otherwise) const {
  if (!has(name)) return otherwise;
  return number(name, low, high);
}

Result<bool> HyperParameters::boolean_or(std::string_view name, bool otherwise) const {
  if (!has(name)) return otherwise;
  return boolean(name);
}

Result<std::string> HyperParameters::text_or(std::string_view name, std::string otherwise) const {
  if (!has(name)) return otherwise;
  return text(name);
}

}  // namespace quipu
