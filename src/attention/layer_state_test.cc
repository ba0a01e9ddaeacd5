#include "attention/layer_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "base/random.h"

namespace quipu {
namespace {

using testing::HasSubstr;

// A layout with every kind of growth. Rows are one int64 wide so that a test can say what each should hold.
StateLayout every_growth(Rewind rewind = Rewind::kStrideBoundary) {
  return {.regions = {{.name = "token", .dtype = DType::kI64, .row_elements = 1},
                      {.name = "stride", .dtype = DType::kI64, .row_elements = 1, .growth = Growth::kPerStride, .stride = 3},
                      {.name = "ring", .dtype = DType::kI64, .row_elements = 1, .growth = Growth::kRing, .ring_rows = 70,
                       .ring_history = 49},
                      {.name = "fixed", .dtype = DType::kI64, .row_elements = 1, .growth = Growth::kFixed, .fixed_rows = 5}},
          .rewind = rewind,
          .stride = 3};
}

int64_t* row_at(LayerState& state, size_t region, int64_t row) {
  RegionState& r = state.region(region);
  const int64_t page_rows = r.spec.page_rows();
  const int64_t page = row / page_rows;
  const size_t slot = static_cast<size_t>(r.ring_pages() > 0 ? page % r.ring_pages() : page);
  return reinterpret_cast<int64_t*>(r.pages[slot]) + row % page_rows;
}

// What a room would do: token rows get the token's value, the stride row adds them up, fixed row v % 5 too.
void append(LayerState& state, const std::vector<int64_t>& values) {
  ASSERT_TRUE(state.prepare_append(static_cast<int64_t>(values.size())).ok());
  for (const int64_t value : values) {
    const int64_t token = state.tokens();
    *row_at(state, 0, token) = value;
    int64_t* open = row_at(state, 1, token / 3);
    *open = token % 3 == 0 ? value : *open + value;
    *row_at(state, 2, token) = value;
    *row_at(state, 3, token % 5) += value;
    for (size_t region : {0u, 1u, 2u}) state.region(region).rows = state.region(region).spec.rows_after(token + 1);
    state.advance(1);
  }
}

// The same in plain vectors.
void expect_holds(LayerState& state, const std::vector<int64_t>& values, bool check_fixed = true) {
  const int64_t tokens = static_cast<int64_t>(values.size());
  ASSERT_EQ(state.tokens(), tokens);
  std::vector<int64_t> strides(static_cast<size_t>((tokens + 2) / 3)), fixed(5);
  for (int64_t t = 0; t < tokens; ++t) {
    ASSERT_EQ(*row_at(state, 0, t), values[t]) << t;
    strides[static_cast<size_t>(t / 3)] += values[t];
    fixed[static_cast<size_t>(t % 5)] += values[t];
    if (t >= tokens - 49) {
      ASSERT_EQ(*row_at(state, 2, t), values[t]) << "ring row " << t;
    }
  }
  for (size_t i = 0; i < strides.size(); ++i) ASSERT_EQ(*row_at(state, 1, static_cast<int64_t>(i)), strides[i]) << i;
  if (!check_fixed) return;
  for (size_t i = 0; i < 5; ++i) ASSERT_EQ(*row_at(state, 3, static_cast<int64_t>(i)), fixed[i]) << i;
}

std::vector<int64_t> counted(int64_t from, int64_t count) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(from + i);
  return values;
}

struct History {
  LayerState state;
  std::vector<int64_t> values;
};

History history_of(PagePool& pool, int64_t tokens, Rewind rewind = Rewind::kStrideBoundary) {
  History run{*LayerState::create(every_growth(rewind), 1000, pool), counted(1000, tokens)};
  for (int64_t t = 0; t < tokens; t += 20) {
    append(run.state, {run.values.begin() + t, run.values.begin() + std::min(t + 20, tokens)});
  }
  return run;
}

TEST(LayerState, RandomForksAppendsCutsAndRestoresKeepEveryCopyApart) {
  PagePool pool;
  RandomStream random(1, 2);
  {
    std::vector<std::optional<History>> runs(4);
    runs[0] = history_of(pool, 0, Rewind::kAnyToken);
    for (int step = 0; step < 3000; ++step) {
      std::optional<History>& run = runs[random.below(4)];
      const uint64_t action = random.below(10);
      if (!run.has_value()) {
        for (std::optional<History>& other : runs) {
          if (other.has_value() && &other != &run) run = History{*other->state.fork(), other->values};
        }
        continue;
      }
      const int64_t tokens = run->state.tokens();
      if (action < 6 && tokens < 900) {
        const auto values = counted(static_cast<int64_t>(random.below(1 << 20)), 1 + static_cast<int64_t>(random.below(21)));
        append(run->state, values);
        run->values.insert(run->values.end(), values.begin(), values.end());
      } else if (action == 6 && std::count_if(runs.begin(), runs.end(), [](auto& r) { return r.has_value(); }) > 1) {
        run.reset();
        continue;
      } else if (action == 7) {
        const int64_t to = static_cast<int64_t>(random.below(static_cast<uint64_t>(tokens) + 1));
        if (run->state.rewind(to).ok()) {
          run->values.resize(static_cast<size_t>(to));
          int64_t fixed[5] = {};   // a room with fixed rows rebuilds or allows no cut; this one rebuilds
          for (int64_t t = 0; t < to; ++t) fixed[t % 5] += run->values[t];
          ASSERT_TRUE(run->state.prepare_append(1).ok());   // makes the page private
          for (int64_t i = 0; i < 5; ++i) *row_at(run->state, 3, i) = fixed[i];
        }
      } else if (action == 8) {
        std::vector<std::byte> saved;
        run->state.save(saved);
        LayerState other = *LayerState::create(every_growth(Rewind::kAnyToken), 1000, pool);
        ASSERT_TRUE(other.load(saved).ok());
        run->state = std::move(other);
      } else {
        (void)run->state.prepare_append(static_cast<int64_t>(random.below(20)));   // a step given up before it began
      }
      for (std::optional<History>& each : runs) {
        if (each.has_value()) expect_holds(each->state, each->values);
      }
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_EQ(pool.live_bytes(), 0);
}

TEST(LayerState, AForkSharesPagesUntilOneSideWrites) {
  PagePool pool;
  History run = history_of(pool, 130);
  const int64_t before = pool.live_bytes();
  LayerState fork = *run.state.fork();
  EXPECT_EQ(pool.live_bytes(), before);
  EXPECT_EQ(fork.bytes(), run.state.bytes());
  append(fork, {7});
  // One page of each growth was copied: the open ones of token, stride and ring, and the fixed one.
  EXPECT_EQ(pool.live_bytes(), before + 3 * 64 * 8 + 5 * 8);
  EXPECT_EQ(fork.region(0).pages[0], run.state.region(0).pages[0]) << "full pages stay shared";
  expect_holds(run.state, run.values);
}

TEST(LayerState, TheContextAndTheRingBoundAStep) {
  PagePool pool;
  LayerState state = *LayerState::create(every_growth(), 30, pool);
  auto refused = state.prepare_append(31);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().error_class, ErrorClass::kUsage);
  EXPECT_EQ(refused.error().message, "the context holds 30 tokens, 0 are in it and 31 more were asked for");
  auto too_long = state.prepare_append(22);
  ASSERT_FALSE(too_long.ok());
  EXPECT_THAT(too_long.error().message, HasSubstr("longer than the 21 that the window of region ring has room for"));
  EXPECT_TRUE(state.prepare_append(21).ok());
}

TEST(LayerState, CutsObeyTheLayout) {
  PagePool pool;
  History any = history_of(pool, 200, Rewind::kAnyToken);
  EXPECT_FALSE(any.state.rewind(199).ok()) << "in the middle of a stride row";
  EXPECT_FALSE(any.state.rewind(201).ok());
  EXPECT_FALSE(any.state.rewind(-1).ok());
  EXPECT_FALSE(any.state.rewind(90).ok()) << "the ring needs rows 41 to 89, and page 0 was overwritten by page 3";
  EXPECT_EQ(any.state.region(2).first_row, 64);
  EXPECT_FALSE(any.state.rewind(111).ok()) << "needs row 62";
  ASSERT_TRUE(any.state.rewind(114).ok()) << "needs rows from 65";
  any.values.resize(114);
  expect_holds(any.state, any.values, false);
  EXPECT_EQ(any.state.region(0).pages.size(), 2u) << "pages beyond the cut go back";

  History boundary = history_of(pool, 200, Rewind::kStrideBoundary);
  EXPECT_FALSE(boundary.state.rewind(190).ok());
  EXPECT_TRUE(boundary.state.rewind(189).ok());
  History never = history_of(pool, 200, Rewind::kNever);
  EXPECT_FALSE(never.state.rewind(198).ok());
  EXPECT_TRUE(never.state.rewind(200).ok());
  EXPECT_TRUE(never.state.rewind(0).ok());
  expect_holds(never.state, {});
}

TEST(LayerState, EveryTruncationOfASavedStateIsRefused) {
  PagePool pool;
  History run = history_of(pool, 70);
  std::vector<std::byte> saved;
  run.state.save(saved);
  LayerState other = *LayerState::create(every_growth(), 1000, pool);
  const int64_t empty_bytes = pool.live_bytes();
  for (size_t length = 0; length < saved.size(); ++length) {
    auto loaded = other.load(std::span(saved).first(length));
    ASSERT_FALSE(loaded.ok()) << length;
    ASSERT_EQ(loaded.error().error_class, ErrorClass::kBadInput);
    ASSERT_EQ(pool.live_bytes(), empty_bytes) << "a refused state keeps memory";
    ASSERT_EQ(other.tokens(), 0);
  }
  saved.push_back(std::byte{0});
  EXPECT_THAT(other.load(saved).error().message, HasSubstr("1 bytes more than the layout has"));
  append(other, {5, 6});
  expect_holds(other, {5, 6});
}

TEST(LayerState, ForgedCountersAreRefusedWithTheirValue) {
  PagePool pool;
  History run = history_of(pool, 200);
  std::vector<std::byte> saved;
  run.state.save(saved);
  LayerState other = *LayerState::create(every_growth(), 1000, pool);
  const auto forged = [&](size_t offset, int64_t value) {
    std::vector<std::byte> bytes = saved;
    std::memcpy(bytes.data() + offset, &value, 8);
    auto loaded = other.load(bytes);
    EXPECT_FALSE(loaded.ok()) << offset << " " << value;
    return loaded.ok() ? std::string() : loaded.error().message;
  };
  EXPECT_THAT(forged(0, -1), HasSubstr("tokens at byte 8: -1, expected 0 to 1000"));
  EXPECT_THAT(forged(0, 1001), HasSubstr("1001, expected 0 to 1000"));
  EXPECT_THAT(forged(0, INT64_MAX), HasSubstr("expected 0 to 1000"));
  EXPECT_THAT(forged(0, 199), HasSubstr("region token rows"));
  EXPECT_THAT(forged(8, INT64_MAX), HasSubstr("expected 200 for 200 tokens"));
  EXPECT_THAT(forged(8, INT64_MIN), HasSubstr("expected 200 for 200 tokens"));
  EXPECT_THAT(forged(16, 64), HasSubstr("region token first row"));
  const size_t ring = 8 + (16 + 4 * 512) + (16 + 2 * 512);
  EXPECT_THAT(forged(ring, 201), HasSubstr("region ring rows"));
  for (const int64_t first : {int64_t{-64}, int64_t{0}, int64_t{65}, int64_t{192}, INT64_MIN, INT64_MAX}) {
    EXPECT_THAT(forged(ring + 8, first), HasSubstr("region ring first row")) << first;
  }
  const size_t fixed = ring + 16 + 3 * 512;
  EXPECT_THAT(forged(fixed, 4), HasSubstr("region fixed rows"));
  ASSERT_TRUE(other.load(saved).ok());
  expect_holds(other, run.values);
}

TEST(LayerState, RandomBytesNeverCrashTheReader) {
  PagePool pool;
  History run = history_of(pool, 140);
  std::vector<std::byte> saved;
  run.state.save(saved);
  LayerState other = *LayerState::create(every_growth(), 1000, pool);
  RandomStream random(3, 3);
  int accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::byte> bytes = saved;
    for (uint64_t flips = 1 + random.below(4); flips > 0; --flips) {
      bytes[random.below(64 * flips) % bytes.size()] ^= static_cast<std::byte>(1u << random.below(8));
    }
    if (other.load(bytes).ok()) ++accepted;   // a flip in a row's content
    ASSERT_TRUE(other.prepare_append(1).ok());
  }
  EXPECT_LT(accepted, 2000);
}

TEST(LayerState, LoadingWithoutMemoryFailsAndLeavesAnEmptyState) {
  PagePool pool;
  History run = history_of(pool, 200);
  std::vector<std::byte> saved;
  run.state.save(saved);
  LayerState other = *LayerState::create(every_growth(), 1000, pool);
  for (const int64_t more : {0, 600, 2000, 4000}) {
    pool.set_limit_bytes(pool.live_bytes() - other.bytes() + more);
    auto loaded = other.load(saved);
    ASSERT_FALSE(loaded.ok());
    EXPECT_EQ(loaded.error().error_class, ErrorClass::kFailed);
    EXPECT_EQ(other.tokens(), 0);
    std::vector<std::byte> empty;
    other.save(empty);
    pool.set_limit_bytes(INT64_MAX);
    ASSERT_TRUE(other.load(empty).ok());
    append(other, {1, 2, 3, 4});
    expect_holds(other, {1, 2, 3, 4});
  }
}

TEST(SequenceState, LayersGrowForkAndRewindTogether) {
  PagePool pool;
  const StateLayout plain{.regions = {{.name = "key", .dtype = DType::kI64, .row_elements = 1}}};
  const std::vector<StateLayout> layouts = {plain, every_growth(Rewind::kStrideBoundary)};
  SequenceState sequence = *SequenceState::create(layouts, 100, pool);
  EXPECT_EQ(sequence.signature(), plain.signature() + "\n" + layouts[1].signature() + "\n");
  EXPECT_FALSE(sequence.prepare_append(101).ok());
  for (int64_t token = 0; token < 20; ++token) {
    ASSERT_TRUE(sequence.prepare_append(1).ok());
    sequence.layer(0).region(0).rows += 1;
    sequence.layer(0).advance(1);
    append(sequence.layer(1), {token});
    sequence.advance(1);
  }
  SequenceState fork = *sequence.fork();
  EXPECT_EQ(fork.tokens(), 20);
  EXPECT_EQ(fork.context(), 100);
  auto refused = fork.rewind(10);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().error_class, ErrorClass::kUsage);
  EXPECT_EQ(fork.layer(0).tokens(), 20) << "no layer is cut when one refuses";
  ASSERT_TRUE(fork.rewind(9).ok());
  EXPECT_EQ(fork.tokens(), 9);
  EXPECT_EQ(fork.layer(0).tokens(), 9);
  EXPECT_EQ(fork.layer(1).region(1).rows, 3);
  expect_holds(sequence.layer(1), counted(0, 20));
  ASSERT_TRUE(fork.rewind(0).ok());
  EXPECT_EQ(fork.bytes(), 5 * 8);
}

// A layer that takes in every third token of its sequence, as a router would have it.
class RoutedSequence {
 public:
  explicit RoutedSequence(double most = 1.0, int64_t context = 1000) {
    StateLayout layout{.regions = {{.name = "token", .dtype = DType::kI64, .row_elements = 1}, position_region()},
                       .routed = RoutedShare{.expected = 0.25, .most = most}};
    state_.emplace(*SequenceState::create(std::vector<StateLayout>{layout}, context, pool_));
  }
  SequenceState& state() { return *state_; }
  LayerState& layer() { return state_->layer(0); }
  PagePool& pool() { return pool_; }

  void append(int64_t tokens) {
    ASSERT_TRUE(state_->prepare_append(tokens).ok());
    for (int64_t t = state_->tokens(), end = t + tokens; t < end; ++t) {
      if (t % 3 != 0 || layer().tokens() == layer().context()) continue;
      *row_at(layer(), 0, layer().tokens()) = t;
      ++layer().region(0).rows;
      layer().note_position(t);
      layer().advance(1);
    }
    state_->advance(tokens);
  }
  void expect_every_third(int64_t tokens) {
    ASSERT_EQ(state_->tokens(), tokens);
    ASSERT_EQ(layer().tokens(), (tokens + 2) / 3);
    for (int64_t i = 0; i < layer().tokens(); ++i) {
      ASSERT_EQ(*row_at(layer(), 0, i), 3 * i);
      ASSERT_EQ(layer().position_of(i), 3 * i);
    }
  }

 private:
  PagePool pool_;
  std::optional<SequenceState> state_;
};

TEST(RoutedLayer, TakesTheBytesOfItsOwnTokensOnly) {
  RoutedSequence run;
  for (const int64_t chunk : {1, 1, 200, 57, 1, 300}) {
    run.append(chunk);
    StateLayout exact = run.layer().layout();
    exact.routed.reset();
    EXPECT_EQ(run.state().bytes(), state_bytes_allocated(exact, run.layer().tokens()));
    EXPECT_EQ(run.pool().live_bytes(), run.state().bytes()) << "pages that the step did not need came back";
  }
  run.expect_every_third(560);
}

TEST(RoutedLayer, IsCutBackWithItsSequenceToAnyToken) {
  for (const int64_t to : {0, 1, 2, 3, 190, 191, 192, 193, 398, 399, 400}) {
    RoutedSequence run;
    run.append(400);
    ASSERT_TRUE(run.state().rewind(to).ok()) << to;
    run.expect_every_third(to);
    run.append(77);
    run.expect_every_third(to + 77);
  }
}

TEST(RoutedLayer, KeepsItsPositionsInAFileAndRefusesThoseOutOfOrder) {
  RoutedSequence run;
  run.append(100);
  std::vector<std::byte> saved;
  run.layer().save(saved);
  RoutedSequence other;
  ASSERT_TRUE(other.layer().load(saved).ok());
  other.state().advance(100);
  other.expect_every_third(100);

  // The page of positions comes last; its row 31 holds 93, between 90 and 96.
  for (const int32_t forged : {-1, 0, 90, 96, INT32_MAX}) {
    std::vector<std::byte> bytes = saved;
    std::memcpy(bytes.data() + bytes.size() - kPageRows * 4 + 31 * 4, &forged, 4);
    const Result<void> loaded = other.layer().load(bytes);
    ASSERT_FALSE(loaded.ok()) << forged;
    EXPECT_THAT(loaded.error().message, HasSubstr("position")) << forged;
    EXPECT_EQ(other.layer().tokens(), 0);
  }
}

TEST(RoutedLayer, IsReservedWholePagesOfItsShareAndSaysWhenTheyAreFull) {
  RoutedSequence run(0.1, 1000);   // 100 tokens: two pages
  ASSERT_EQ(run.layer().context(), 128);
  run.append(383);                 // 0, 3 .. 381: 128 of them
  RoutedTokens counts = run.state().routed_tokens().at(0);
  EXPECT_EQ(counts.taken, 128);
  EXPECT_EQ(counts.reserved, 128);
  EXPECT_EQ(counts.passed_full, 1);
  run.append(500);
  counts = run.state().routed_tokens().at(0);
  EXPECT_EQ(counts.seen, 883);
  EXPECT_EQ(counts.taken, 128) << "full: later tokens pass it by";
  EXPECT_EQ(counts.passed_full, 501);
}

}  // namespace
}  // namespace quipu
