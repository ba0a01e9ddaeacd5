// Result<T>: the outcome of anything that depends on bytes or requests from outside.
//
// An Error carries a class (which the program turns into its exit code) and one line for a person: what, where,
// expected, found, what to do. Our own bugs do not travel this way; they hit CHECK (base/check.h).
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace quipu {

// The values are the program's exit codes.
enum class ErrorClass {
  kFailed = 1,    // the machine or a peer failed: no memory, disk full, interrupted
  kUsage = 2,     // the caller asked for something that cannot be: unknown flag, value out of range
  kBadInput = 3,  // a file or message from outside is malformed or unsupported
};

struct Error {
  ErrorClass error_class = ErrorClass::kFailed;
  std::string message;
};

inline Error failed(std::string message) { return {ErrorClass::kFailed, std::move(message)}; }
inline Error usage_error(std::string message) { return {ErrorClass::kUsage, std::move(message)}; }
inline Error bad_input(std::string message) { return {ErrorClass::kBadInput, std::move(message)}; }

// Holds a T or an Error. Reading the one it does not hold is our bug and stops the program.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::in_place_index<0>, std::move(value)) {}        // NOLINT(google-explicit-constructor)
  Result(Error error) : value_(std::in_place_index<1>, std::move(error)) {}    // NOLINT(google-explicit-constructor)

  bool ok() const { return value_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { CHECK(ok()) << error_message(); return std::get<0>(value_); }
  const T& value() const& { CHECK(ok()) << error_message(); return std::get<0>(value_); }
  T&& value() && { CHECK(ok()) << error_message(); return std::get<0>(std::move(value_)); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

  const Error& error() const& { CHECK(!ok()); return std::get<1>(value_); }
  Error&& error() && { CHECK(!ok()); return std::get<1>(std::move(value_)); }

 private:
  std::string error_message() const { return ok() ? std::string() : std::get<1>(value_).message; }
  std::variant<T, Error> value_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}                // NOLINT(google-explicit-constructor)
  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  const Error& error() const& { CHECK(!ok_); return error_; }
  Error&& error() && { CHECK(!ok_); return std::move(error_); }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace quipu

#define QUIPU_CONCAT_INNER(a, b) a##b
#define QUIPU_CONCAT(a, b) QUIPU_CONCAT_INNER(a, b)

// Returns the error of `expression` from the enclosing function, if it has one.
#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    auto quipu_status = (expression);                                       \
    if (!quipu_status.ok()) return std::move(quipu_status).error();         \
  } while (false)

// ASSIGN_OR_RETURN(auto x, expression): declares or assigns x, or returns the error.
#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_NAMED(QUIPU_CONCAT(quipu_result_, __LINE__), target, expression)
#define ASSIGN_OR_RETURN_NAMED(name, target, expression) \
  auto name = (expression);                              \
  if (!name.ok()) return std::move(name).error();        \
  target = std::move(name).value()
