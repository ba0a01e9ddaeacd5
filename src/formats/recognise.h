// What a file that is not what it should be seems to be: for error messages only, never to choose a reader.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace quipu {

// "a Git LFS pointer, not the file itself; fetch it with git lfs pull", or "" when the first bytes say nothing.
std::string recognise_content(std::span<const std::byte> bytes);

// ": it looks like <recognise_content>", or "".
std::string looks_like(std::span<const std::byte> bytes);

}  // namespace quipu
