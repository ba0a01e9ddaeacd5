// HyperParameters: the named settings of one room, as a config file gave them. Rooms read them by name with bounds; a
// missing or wrong one is an error that names the key, never a guess. It remembers which names were asked for, so that a
// setting nobody reads is found, too.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

namespace quipu {

class HyperParameters {
 public:
  using Value = std::variant<bool, int64_t, double, std::string, std::vector<double>>;

  using Values = std::map<std::string, Value, std::less<>>;

  // origin: file the values came from; section: the part of it, both for messages: "config.json: attention setting ...".
  explicit HyperParameters(std::string origin = "config", std::string section = "attention")
      : origin_(std::move(origin)), section_(std::move(section)) {}

  void set(std::string name, Value value) { values_[std::move(name)] = std::move(value); }
  bool has(std::string_view name) const { return find(name) != nullptr; }
  const std::string& origin() const { return origin_; }
  const Values& values() const { return values_; }
  // Names asked for so far, with has() or a reader, whether set or not. Not for use by two threads at once.
  const std::set<std::string, std::less<>>& asked() const { return asked_; }
  // An error that names the first setting nobody has asked for and the nearest one somebody has; ok() when there is none.
  // user: who has read them: "room latent".
  Result<void> all_asked(std::string_view user) const;

  // The value, which must be there and in [low, high].
  Result<int64_t> integer(std::string_view name, int64_t low, int64_t high) const;
  Result<double> number(std::string_view name, double low, double high) const;
  Result<std::string> text(std::string_view name) const;
  Result<bool> boolean(std::string_view name) const;
  Result<std::vector<double>> numbers(std::string_view name, size_t length) const;
  // The same, or the given value when the key is absent. Only for settings whose absence has a defined meaning.
  Result<int64_t> integer_or(std::string_view name, int64_t low, int64_t high, int64_t otherwise) const;
  Result<double> number_or(std::string_view name, double low, double high, double otherwise) const;
  Result<bool> boolean_or(std::string_view name, bool otherwise) const;
  Result<std::string> text_or(std::string_view name, std::string otherwise) const;

 private:
  const Value* find(std::string_view name) const;
  Error missing(std::string_view name) const;
  Error wrong(std::string_view name, std::string_view expected) const;
  std::string origin_, section_;
  Values values_;
  mutable std::set<std::string, std::less<>> asked_;
};

}  // namespace quipu
