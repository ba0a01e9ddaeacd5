#include <algorithm>
#include <cstring>
#include <new>

#include "attention/layer_state.h"

namespace quipu {
namespace {

// In front of every page. 64 bytes keep the page aligned, and stagger pages whose size is a power of two over the sets
// of a cache.
struct alignas(64) Header {
  static constexpr uint64_t kLive = 0x7175697075706167u;
  static constexpr uint64_t kFree = 0x667265657061676eu;
  uint64_t mark = kFree;
  int64_t references = 0;
  int64_t bytes = 0;
  size_t size_class = 0;
  Header* next_free = nullptr;
};
static_assert(sizeof(Header) == 64);

Header* header_of(const std::byte* page) {
  Header* header = reinterpret_cast<Header*>(const_cast<std::byte*>(page) - sizeof(Header));
  CHECK(header->mark == Header::kLive) << "not a live page";
  return header;
}

constexpr int64_t kFirstSlabPages = 8;
constexpr int64_t kLargestSlab = int64_t{64} << 20;

}  // namespace

struct PagePool::Impl {
  struct SizeClass {
    int64_t bytes = 0;                // of a page, without header
    int64_t slab_pages = kFirstSlabPages;
    Header* free = nullptr;
    std::byte* next = nullptr;        // untouched rest of the newest slab
    int64_t rest = 0;                 // pages in it
  };
  std::vector<SizeClass> classes;     // few: one a region shape
  std::vector<Buffer> slabs;

  size_t class_of(int64_t bytes) {
    for (size_t i = 0; i < classes.size(); ++i) {
      if (classes[i].bytes == bytes) return i;
    }
    classes.push_back({.bytes = bytes});
    return classes.size() - 1;
  }
};

PagePool::PagePool() : impl_(std::make_unique<Impl>()) {
  impl_->classes.reserve(16);
  impl_->slabs.reserve(256);
}

PagePool::~PagePool() { CHECK(live_bytes_ == 0) << live_bytes_ << " bytes of pages outlive their pool"; }

Result<std::byte*> PagePool::take(int64_t bytes) {
  CHECK(bytes > 0) << bytes;
  if (bytes > limit_bytes_ - live_bytes_) {
    return failed("context memory is full: " + std::to_string(live_bytes_) + " bytes in use, " + std::to_string(bytes) +
                  " more wanted, limit " + std::to_string(limit_bytes_));
  }
  const size_t index = impl_->class_of(bytes);
  Impl::SizeClass& size_class = impl_->classes[index];
  Header* header = size_class.free;
  if (header != nullptr) {
    size_class.free = header->next_free;
    std::memset(reinterpret_cast<std::byte*>(header + 1), 0, static_cast<size_t>(bytes));
  } else {
    const int64_t step = static_cast<int64_t>(sizeof(Header)) + (bytes + 63) / 64 * 64;
    if (size_class.rest == 0) {
      const int64_t pages = std::max<int64_t>(1, std::min(size_class.slab_pages, kLargestSlab / step));
      ASSIGN_OR_RETURN(Buffer slab, Buffer::allocate(static_cast<size_t>(pages * step)));   // zeroed
      size_class.next = slab.data();
      size_class.rest = pages;
      size_class.slab_pages = pages * 2;
      impl_->slabs.push_back(std::move(slab));
    }
    header = new (size_class.next) Header();
    size_class.next += step;
    --size_class.rest;
  }
  *header = {.mark = Header::kLive, .references = 1, .bytes = bytes, .size_class = index};
  live_bytes_ += bytes;
  return reinterpret_cast<std::byte*>(header + 1);
}

void PagePool::share(std::byte* page) { ++header_of(page)->references; }

void PagePool::release(std::byte* page) {
  Header* header = header_of(page);
  if (--header->references > 0) return;
  live_bytes_ -= header->bytes;
  Impl::SizeClass& size_class = impl_->classes[header->size_class];
  header->mark = Header::kFree;
  header->next_free = size_class.free;
  size_class.free = header;
}

bool PagePool::shared(const std::byte* page) const { return header_of(page)->references > 1; }

}  // namespace quipu
