// The properties every room must have, on every back end that promises them. A room takes part by its line in rooms.def
// and by <room>/conformance_case.cc; nothing here knows a variant.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "attention/allocation_count.h"
#include "attention/attention.h"
#include "attention/random_weights.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/random.h"

namespace quipu {

#define ROOM(name) std::vector<ConformanceCase> conformance_cases_##name();
#include "attention/rooms.def"
#undef ROOM

namespace {

constexpr int64_t kTokens = 270;   // past four pages, and past the end of a small ring
using BackendFactory = std::function<std::unique_ptr<Backend>(int threads)>;

struct Parameter {
  std::string room;
  ConformanceCase config;
  DType dtype;
  std::string backend_name;
  BackendFactory make_backend;
};

void PrintTo(const Parameter& p, std::ostream* out) { *out << p.room << " " << p.config.name << " on " << p.backend_name; }

struct NamedBackend {
  std::string name;
  BackendFactory make;
};

// The oracle, and the CPU back end at every level this machine has.
std::vector<NamedBackend> all_backends() {
  std::vector<NamedBackend> backends = {{"reference", make_reference_backend}};
  for (const Isa isa : available_isas()) {
    backends.push_back({"cpu_" + std::string(isa_name(isa)), [isa](int threads) {
                          auto backend = make_cpu_backend({.threads = threads, .isa = isa});
                          CHECK(backend.ok()) << backend.error().message;
                          return std::move(backend).value();
                        }});
  }
  return backends;
}

std::vector<Parameter> all_parameters() {
  const std::vector<NamedBackend> backends = all_backends();
  std::vector<Parameter> parameters;
  const auto add = [&](const char* room, const std::vector<ConformanceCase>& cases) {
    for (const ConformanceCase& config : cases) {
      for (const DType dtype : config.cache_dtypes) {
        for (const NamedBackend& backend : backends) {
          parameters.push_back({room, config, dtype, backend.name, backend.make});
        }
      }
    }
  };
#define ROOM(name) add(#name, conformance_cases_##name());
#include "attention/rooms.def"
#undef ROOM
  return parameters;
}

using Rows = std::vector<float>;

Rows random_rows(int64_t rows, int64_t cols, uint64_t seed) {
  RandomStream random(seed, 77);
  Rows values(static_cast<size_t>(rows * cols));
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

// A room on a back end, with what it needs to run.
class Layer {
 public:
  Layer(const Parameter& parameter, int threads)
      : backend_(parameter.make_backend(threads)), hidden_(parameter.config.shape.hidden),
        options_{parameter.dtype, parameter.config.max_chunk} {
    RandomWeights weights(*backend_, parameter.config.optional_roles);
    auto room = find_room(parameter.room);
    CHECK(room.ok()) << parameter.room;
    auto created = (*room)->create(parameter.config.shape, parameter.config.parameters, weights, *backend_);
    CHECK(created.ok()) << created.error().message;
    room_ = std::move(created).value();
  }

  int64_t hidden() const { return hidden_; }
  int64_t max_chunk() const { return options_.max_chunk; }
  StateLayout layout() const { return room_->state_layout(options_); }
  PagePool& pool() { return pool_; }
  LayerState new_state(int64_t context = kTokens) { return std::move(LayerState::create(layout(), context, pool_)).value(); }
  // For chunks longer than max_chunk.
  LayerState new_state_for_chunks(int64_t chunk) {
    return std::move(LayerState::create(room_->state_layout({options_.cache_dtype, chunk}), kTokens, pool_)).value();
  }

  struct Part {
    LayerState* state;
    const float* rows;
    int64_t count;
    bool prompt = false;
  };
  // One ragged step; returns all output rows. reserve() beforehand keeps it free of allocation, but for the result.
  void step(float* out, const float* x, std::span<const SequenceSlice> slices, std::span<const int64_t> positions) {
    const int64_t rows = static_cast<int64_t>(positions.size());
    reserve(rows);
    room_->forward(*backend_, {out, rows, hidden_}, {x, rows, hidden_}, {slices, positions}, arena_);
    CHECK(arena_.used() == 0) << "forward() must give its scratch back";
  }
  void reserve(int64_t rows) { CHECK(arena_.reserve(static_cast<size_t>(room_->scratch_bytes(rows))).ok()); }

  Rows step(std::span<const Part> parts) {
    Rows x;
    std::vector<SequenceSlice> slices;
    std::vector<int64_t> positions;
    for (const Part& part : parts) {
      const Result<void> prepared = part.state->prepare_append(part.count);
      CHECK(prepared.ok()) << prepared.error().message;
      slices.push_back({part.state, static_cast<int64_t>(positions.size()), part.count, part.prompt});
      for (int64_t i = 0; i < part.count; ++i) positions.push_back(part.state->tokens() + i);
      x.insert(x.end(), part.rows, part.rows + part.count * hidden_);
    }
    Rows out(x.size());
    step(out.data(), x.data(), slices, positions);
    return out;
  }

  // Appends rows [begin, end) of x in chunks of `chunk`; returns their outputs.
  Rows feed(LayerState& state, const Rows& x, int64_t begin, int64_t end, int64_t chunk, bool prompt = false) {
    Rows out;
    for (int64_t row = begin; row < end; row += chunk) {
      const Part part{&state, x.data() + row * hidden_, std::min(chunk, end - row), prompt};
      const Rows piece = step({&part, 1});
      out.insert(out.end(), piece.begin(), piece.end());
    }
    return out;
  }
  // The outputs of x on a fresh state, token by token.
  Rows alone(const Rows& x) {
    LayerState state = new_state();
    return feed(state, x, 0, static_cast<int64_t>(x.size()) / hidden_, 1);
  }

 private:
  PagePool pool_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Attention> room_;
  int64_t hidden_;
  StateOptions options_;
  Arena arena_;
};

bool same_bits(const Rows& a, const Rows& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Rows rows_of(const Rows& all, int64_t begin, int64_t end, int64_t cols) {
  return {all.begin() + begin * cols, all.begin() + end * cols};
}

Rows joined(const Rows& a, const Rows& b) {
  Rows both = a;
  both.insert(both.end(), b.begin(), b.end());
  return both;
}

class Conformance : public testing::TestWithParam<Parameter> {
 protected:
  Layer layer_{GetParam(), 1};
  int64_t hidden_ = GetParam().config.shape.hidden;
  Rows x_ = random_rows(kTokens, hidden_, 3);
};

TEST_P(Conformance, PrefillChunksAndSingleStepsGiveTheSameBits) {
  const Rows single = layer_.alone(x_);
  EXPECT_TRUE(std::all_of(single.begin(), single.end(), [](float v) { return std::isfinite(v); }));
  LayerState whole = layer_.new_state_for_chunks(kTokens);
  EXPECT_TRUE(same_bits(layer_.feed(whole, x_, 0, kTokens, kTokens), single)) << "one prefill";
  for (const int64_t chunk : {int64_t{2}, int64_t{7}, layer_.max_chunk() - 1, layer_.max_chunk()}) {
    LayerState state = layer_.new_state();
    EXPECT_TRUE(same_bits(layer_.feed(state, x_, 0, kTokens, chunk), single)) << "chunks of " << chunk;
  }
  LayerState mixed = layer_.new_state();
  RandomStream random(5, 5);
  Rows out;
  for (int64_t row = 0; row < kTokens;) {
    const int64_t draw = 1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(layer_.max_chunk())));
    const int64_t chunk = std::min(draw, kTokens - row);
    out = joined(out, layer_.feed(mixed, x_, row, row + chunk, chunk));
    row += chunk;
  }
  EXPECT_TRUE(same_bits(out, single)) << "random chunks";
}

// A room may treat the rows of a prompt in their own way, but not by how many come at once.
TEST_P(Conformance, APromptAndWhatFollowsHaveTheSameBitsHoweverThePromptIsCut) {
  constexpr int64_t kPrompt = kTokens - 6;
  const auto run = [&](int64_t chunk) {
    LayerState state = layer_.new_state_for_chunks(kTokens);
    const Rows prompt = layer_.feed(state, x_, 0, kPrompt, chunk, true);
    return joined(prompt, layer_.feed(state, x_, kPrompt, kTokens, 1));
  };
  const Rows whole = run(kPrompt);
  EXPECT_TRUE(std::all_of(whole.begin(), whole.end(), [](float v) { return std::isfinite(v); }));
  for (const int64_t chunk : {int64_t{1}, int64_t{33}, layer_.max_chunk()}) {
    EXPECT_TRUE(same_bits(run(chunk), whole)) << "chunks of " << chunk;
  }
}

TEST_P(Conformance, ATokenChangesItselfAndTheFutureOnly) {
  const Rows before = layer_.alone(x_);
  for (const int64_t token : {int64_t{0}, int64_t{63}, int64_t{64}, int64_t{130}, kTokens - 1}) {
    Rows changed = x_;
    for (int64_t c = 0; c < hidden_; ++c) changed[static_cast<size_t>(token * hidden_ + c)] += 0.5f;
    LayerState state = layer_.new_state_for_chunks(kTokens);
    const Rows after = layer_.feed(state, changed, 0, kTokens, kTokens);
    EXPECT_TRUE(same_bits(rows_of(after, 0, token, hidden_), rows_of(before, 0, token, hidden_))) << token;
    EXPECT_FALSE(same_bits(rows_of(after, token, token + 1, hidden_), rows_of(before, token, token + 1, hidden_))) << token;
    if (token + 1 < kTokens) {
      EXPECT_FALSE(same_bits(rows_of(after, token + 1, token + 2, hidden_), rows_of(before, token + 1, token + 2, hidden_)))
          << "the token after " << token << " does not notice it";
    }
  }
}

TEST_P(Conformance, ASequenceDoesNotSeeItsBatchNeighbours) {
  const std::vector<int64_t> lengths = {67, 5, 131};
  std::vector<Rows> inputs;
  std::vector<Rows> alone;
  std::vector<LayerState> states;
  std::vector<Rows> together(3);
  for (size_t i = 0; i < 3; ++i) {
    inputs.push_back(random_rows(lengths[i], hidden_, 10 + i));
    LayerState state = layer_.new_state();
    alone.push_back(layer_.feed(state, inputs[i], 0, lengths[i], 1, i != 1));   // a prompt, generated rows, a prompt
    states.push_back(layer_.new_state());
  }
  // Ragged steps: each takes what it has left, at most 1, 2 or max_chunk rows; some take none.
  const std::vector<int64_t> most = {layer_.max_chunk(), 1, 2};
  for (bool more = true; more;) {
    more = false;
    std::vector<Layer::Part> parts;
    for (size_t i = 0; i < 3; ++i) {
      const int64_t done = states[i].tokens();
      const int64_t count = std::min(most[i], lengths[i] - done);
      parts.push_back({&states[i], inputs[i].data() + done * hidden_, count, i != 1});
      more = more || count > 0;
    }
    const Rows out = layer_.step(parts);
    int64_t row = 0;
    for (size_t i = 0; i < 3; ++i) {
      together[i] = joined(together[i], rows_of(out, row, row + parts[i].count, hidden_));
      row += parts[i].count;
    }
  }
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(together[i], alone[i])) << "sequence " << i;
}

TEST_P(Conformance, ForksDivergeWithoutTouchingEachOther) {
  const Rows straight = layer_.alone(x_);
  for (const int64_t at : {int64_t{0}, int64_t{71}, int64_t{192}}) {
    const Rows other = joined(rows_of(x_, 0, at, hidden_), random_rows(kTokens - at, hidden_, 99));
    LayerState first = layer_.new_state();
    (void)layer_.feed(first, x_, 0, at, layer_.max_chunk());
    auto forked = first.fork();   // at 71 inside a page, at 192 between two
    ASSERT_TRUE(forked.ok());
    LayerState second = std::move(forked).value();
    Rows out_first, out_second;
    for (int64_t row = at; row < kTokens; ++row) {
      out_first = joined(out_first, layer_.feed(first, x_, row, row + 1, 1));
      out_second = joined(out_second, layer_.feed(second, other, row, row + 1, 1));
    }
    EXPECT_TRUE(same_bits(out_first, rows_of(straight, at, kTokens, hidden_))) << at;
    EXPECT_TRUE(same_bits(out_second, rows_of(layer_.alone(other), at, kTokens, hidden_))) << at;
  }
  EXPECT_EQ(layer_.pool().live_bytes(), 0) << "pages leak";
}

TEST_P(Conformance, RewindForgetsExactlyWhatTheLayoutAllows) {
  const StateLayout layout = layer_.layout();
  const bool has_ring = std::any_of(layout.regions.begin(), layout.regions.end(),
                                    [](const RegionSpec& r) { return r.growth == Growth::kRing; });
  const int64_t end = kTokens - 30;
  const Rows straight = layer_.alone(x_);
  for (const int64_t to : {int64_t{0}, int64_t{64}, int64_t{66}, end - 30, end - 1, end}) {
    LayerState state = layer_.new_state();
    (void)layer_.feed(state, x_, 0, end, 7);
    const bool promised = to == 0 || to == end ||
                          (layout.rewind == Rewind::kAnyToken && (!has_ring || to >= end - layer_.max_chunk())) ||
                          (layout.rewind == Rewind::kStrideBoundary && to % layout.stride == 0 && !has_ring);
    const bool forbidden = to != 0 && to != end &&
                           (layout.rewind == Rewind::kNever ||
                            (layout.rewind == Rewind::kStrideBoundary && to % layout.stride != 0));
    const Result<void> cut = state.rewind(to);
    if (promised) {
      EXPECT_TRUE(cut.ok()) << to << ": " << cut.error().message;
    }
    if (forbidden) {
      EXPECT_FALSE(cut.ok()) << to;
    }
    if (cut.ok()) {
      const Rows other = joined(rows_of(x_, 0, to, hidden_), random_rows(kTokens - to, hidden_, 41));
      EXPECT_TRUE(same_bits(layer_.feed(state, other, to, kTokens, layer_.max_chunk()),
                            rows_of(layer_.alone(other), to, kTokens, hidden_)))
          << "after a cut to " << to;
    } else {
      EXPECT_EQ(cut.error().error_class, ErrorClass::kUsage);
      EXPECT_TRUE(same_bits(layer_.feed(state, x_, end, kTokens, 1), rows_of(straight, end, kTokens, hidden_)))
          << "a refused cut to " << to << " changed the state";
    }
  }
}

TEST_P(Conformance, TheStateTakesTheBytesItDeclares) {
  const StateLayout layout = layer_.layout();
  LayerState state = layer_.new_state();
  for (int64_t tokens = 0; tokens <= kTokens; ++tokens) {
    ASSERT_EQ(state.tokens(), tokens);
    if (tokens > 0) {
      ASSERT_EQ(state.bytes(), state_bytes_allocated(layout, tokens)) << tokens;
    }
    ASSERT_EQ(layer_.pool().live_bytes(), state.bytes());
    int64_t used = 0;
    for (size_t i = 0; i < state.regions(); ++i) {
      const RegionState& region = state.region(i);
      const int64_t rows = region.spec.growth == Growth::kRing ? std::min(region.rows, region.spec.ring_rows) : region.rows;
      used += rows * region.spec.bytes_per_row();
    }
    ASSERT_EQ(used, state_bytes(layout, tokens)) << tokens;
    if (tokens < kTokens) (void)layer_.feed(state, x_, tokens, tokens + 1, 1);
  }
}

TEST_P(Conformance, ASavedStateGoesOnWithTheSameBitsFromEveryPosition) {
  LayerState state = layer_.new_state();
  LayerState restored = layer_.new_state();
  std::vector<std::byte> saved, again;
  for (int64_t position = 0; position < kTokens; ++position) {
    const bool every_one = position <= 2 * kPageRows + 3;
    if (every_one || position % 17 == 0) {
      saved.clear();
      state.save(saved);
      const Result<void> loaded = restored.load(saved);
      ASSERT_TRUE(loaded.ok()) << position << ": " << loaded.error().message;
      ASSERT_EQ(restored.tokens(), position);
      again.clear();
      restored.save(again);
      ASSERT_TRUE(saved == again) << position;
      const Rows next = layer_.feed(state, x_, position, position + 1, 1);
      ASSERT_TRUE(same_bits(layer_.feed(restored, x_, position, position + 1, 1), next)) << position;
    } else {
      (void)layer_.feed(state, x_, position, position + 1, 1);
    }
  }
}

TEST_P(Conformance, AStepWithoutMemoryFailsAndCanBeRepeated) {
  LayerState state = layer_.new_state();
  const int64_t at = 60;
  Rows out = layer_.feed(state, x_, 0, at, 1);
  layer_.pool().set_limit_bytes(layer_.pool().live_bytes() + 1);
  const Result<void> refused = state.prepare_append(20);
  // A room whose state does not grow here needs no memory.
  if (!refused.ok()) {
    EXPECT_EQ(refused.error().error_class, ErrorClass::kFailed);
    EXPECT_EQ(state.tokens(), at);
  }
  layer_.pool().set_limit_bytes(INT64_MAX);
  out = joined(out, layer_.feed(state, x_, at, kTokens, 20));
  EXPECT_TRUE(same_bits(out, layer_.alone(x_)));
}

TEST_P(Conformance, ADecodeStepAllocatesNothing) {
  LayerState state = layer_.new_state();
  (void)layer_.feed(state, x_, 0, 40, 20);
  Rows out(static_cast<size_t>(hidden_));
  const auto decode = [&] {
    ASSERT_TRUE(state.prepare_append(1).ok());
    const SequenceSlice slice{&state, 0, 1};
    const int64_t position = state.tokens();
    layer_.step(out.data(), x_.data() + position * hidden_, {&slice, 1}, {&position, 1});
  };
  for (int i = 0; i < 10; ++i) decode();
  const int64_t before = allocations_so_far();
  while (state.tokens() < kTokens) decode();   // crosses pages
  EXPECT_EQ(allocations_so_far() - before, 0);
}

TEST_P(Conformance, TheNumberOfThreadsChangesNoBit) {
  Layer threaded(GetParam(), 3);
  LayerState one = layer_.new_state();
  LayerState three = threaded.new_state();
  EXPECT_TRUE(same_bits(layer_.feed(one, x_, 0, 200, layer_.max_chunk()),
                        threaded.feed(three, x_, 0, 200, layer_.max_chunk())));
  EXPECT_TRUE(same_bits(layer_.feed(one, x_, 0, 9, 1), threaded.feed(three, x_, 0, 9, 1))) << "single steps";
}

INSTANTIATE_TEST_SUITE_P(EveryRoom, Conformance, testing::ValuesIn(all_parameters()), [](const auto& test) {
  return test.param.room + "_" + test.param.config.name + "_" + std::string(dtype_name(test.param.dtype)) + "_" +
         test.param.backend_name;
});

TEST(Registry, AnUnknownRoomIsRefusedWithTheNamesThereAre) {
  auto room = find_room("grouped");
  ASSERT_FALSE(room.ok());
  EXPECT_EQ(room.error().error_class, ErrorClass::kBadInput);
  EXPECT_NE(room.error().message.find("grouped_query"), std::string::npos) << room.error().message;
  for (const RoomEntry& entry : all_rooms()) {
    auto found = find_room(entry.name);
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(*found, &entry);
  }
}

}  // namespace
}  // namespace quipu
