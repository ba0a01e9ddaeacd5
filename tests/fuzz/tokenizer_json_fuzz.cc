// tokenizer.json from a hostile model: it loads or it is refused, and what loads encodes and decodes a short text.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/utf8.h"
#include "text/tokenizer_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quipu;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = parse_tokenizer_json(bytes);
  if (!tokenizer.ok()) {
    CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  for (std::string_view text : {"It's 3 cafe\u0301s,  ab\n\n<s> 日本 ▁x", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\xff\xf0\x9f"}) {
    for (bool parse_special : {false, true}) {
      const auto ids = (*tokenizer)->encode(text, {.parse_special = parse_special});
      if (!ids.ok()) continue;
      for (int32_t id : *ids) CHECK(id >= 0 && id < (*tokenizer)->vocab_size()) << id;
      CHECK(utf8_is_valid((*tokenizer)->decode(*ids, false)));
    }
  }
  return 0;
}
