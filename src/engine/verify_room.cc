#include "engine/verify_room.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/byte_reader.h"
#include "base/cpu_features.h"
#include "engine/golden_layer.h"

namespace quipu {
namespace {

constexpr int64_t kMostRestores = 16;
// Pages and scratch of one run: a forged file must not take the machine's memory.
constexpr int64_t kMostStateBytes = int64_t{4} << 30;

// How the input reaches the layer: chunks of `rows` tokens; or all tokens with the state saved after the first `cut` of them
// and restored into a new one.
struct FeedPath {
  std::string name;
  std::vector<int64_t> rows;   // the last one repeats
  std::vector<int64_t> cuts;   // empty: no restoring; otherwise one run each
};

std::vector<FeedPath> feed_paths(int64_t tokens, int64_t period) {
  std::vector<FeedPath> paths = {{"one shot", {tokens}, {}}, {"token by token", {1}, {}}};
  std::set<int64_t> sizes = {2, 3, 7, 64};
  if (period > 1) sizes.insert({period - 1, period, period + 1});
  for (const int64_t size : sizes) {
    if (size > 1 && size < tokens) paths.push_back({"chunks of " + std::to_string(size), {size}, {}});
  }
  if (tokens > 6) paths.push_back({"chunks of 5, 1, then 3", {5, 1, 3}, {}});
  if (tokens > 1) paths.push_back({"all but one, then one", {tokens - 1, 1}, {}});
  std::set<int64_t> cuts;
  const int64_t points = std::min(tokens - 1, kMostRestores);
  for (int64_t i = 1; i <= points; ++i) cuts.insert(std::max<int64_t>(1, tokens * i / (points + 1)));
  if (!cuts.empty()) {
    paths.push_back({"restored at " + std::to_string(cuts.size()) + " points", {}, {cuts.begin(), cuts.end()}});
  }
  return paths;
}

template <class Values>
double relative_error(std::span<const float> got, const Values& wanted) {
  if (got.size() != wanted.size()) return std::numeric_limits<double>::infinity();
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(double{got[i]} - wanted[i]);
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    error = std::max(error, difference);
    size = std::max(size, std::abs(wanted[i]));
  }
  if (error == 0) return 0;   // also where a memory nobody wrote is all zeros
  return size > 0 ? error / size : std::numeric_limits<double>::infinity();
}

// One layer bound on one back end, and sequences fed to it.
class LayerRunner {
 public:
  static Result<LayerRunner> create(const GoldenLayer& golden, const std::string& form, Backend& backend) {
    LayerRunner runner(golden, backend);
    HyperParameters parameters = golden.parameters;
    if (!form.empty()) parameters.set("form", form);
    GoldenWeights weights(golden, backend);
    ASSIGN_OR_RETURN(const RoomEntry* entry, find_room(golden.room));
    ASSIGN_OR_RETURN(runner.room_, entry->create({.hidden = golden.hidden}, parameters, weights, backend));
    runner.unused_ = weights.unused();
    runner.pool_->set_limit_bytes(kMostStateBytes);
    return runner;
  }

  const std::vector<std::string>& unused() const { return unused_; }

  // Errors by quantity, in the order output, then the state's tensors.
  using Errors = std::vector<std::pair<std::string, double>>;
  Result<Errors> run(const FeedPath& path) {
    if (path.cuts.empty()) {
      RETURN_IF_ERROR(begin_again());
      return finish(path.rows);
    }
    Errors worst;
    for (const int64_t cut : path.cuts) {
      RETURN_IF_ERROR(begin_again());
      RETURN_IF_ERROR(feed(cut));
      std::vector<std::byte> saved;
      state_->save(saved);
      RETURN_IF_ERROR(new_state());
      RETURN_IF_ERROR(state_->load(saved));
      ASSIGN_OR_RETURN(const Errors errors, finish({golden_.tokens}));
      if (worst.empty()) worst = errors;
      for (size_t i = 0; i < errors.size(); ++i) worst[i].second = std::max(worst[i].second, errors[i].second);
    }
    return worst;
  }

 private:
  LayerRunner(const GoldenLayer& golden, Backend& backend) : golden_(golden), backend_(backend), out_(golden.input.size()) {}

  Result<void> new_state() {
    state_.reset();
    const StateLayout layout = room_->state_layout({.cache_dtype = DType::kF32, .max_chunk = golden_.tokens});
    ASSIGN_OR_RETURN(LayerState state, LayerState::create(layout, golden_.tokens, *pool_));
    state_ = std::make_unique<LayerState>(std::move(state));
    return {};
  }
  Result<void> begin_again() {
    std::fill(out_.begin(), out_.end(), std::numeric_limits<float>::quiet_NaN());
    return new_state();
  }
  // Appends the next `rows` tokens.
  Result<void> feed(int64_t rows) {
    const int64_t begin = state_->tokens(), hidden = golden_.hidden;
    RETURN_IF_ERROR(state_->prepare_append(rows));
    std::vector<int64_t> positions(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), begin);
    RETURN_IF_ERROR(arena_->reserve(static_cast<size_t>(room_->scratch_bytes(rows))));
    const SequenceSlice slice{state_.get(), 0, rows};
    room_->forward(backend_, {out_.data() + begin * hidden, rows, hidden},
                   {golden_.input.data() + begin * hidden, rows, hidden}, {{&slice, 1}, positions}, *arena_);
    return {};
  }
  Result<Errors> finish(const std::vector<int64_t>& chunks) {
    for (size_t step = 0; state_->tokens() < golden_.tokens; ++step) {
      const int64_t rows = chunks[std::min(step, chunks.size() - 1)];
      RETURN_IF_ERROR(feed(std::min(rows, golden_.tokens - state_->tokens())));
    }
    Errors errors = {{"output", relative_error(out_, golden_.output)}};
    const std::string& file = golden_.file.display_name();
    for (const StateTensor& ours : room_->state_tensors(*state_)) {
      const auto wanted = std::find_if(golden_.final_state.begin(), golden_.final_state.end(),
                                       [&](const GoldenTensor& t) { return t.name == ours.name; });
      if (wanted == golden_.final_state.end()) {
        return bad_input(file + ": tensor " + ours.name + " is missing; expected " + shape_text(ours.shape));
      }
      if (wanted->shape != ours.shape) {
        return bad_input(file + ": tensor " + ours.name + ": shape " + shape_text(wanted->shape) + ", expected " +
                         shape_text(ours.shape));
      }
      errors.emplace_back(ours.name, relative_error(ours.values, wanted->values));
    }
    return errors;
  }

  const GoldenLayer& golden_;
  Backend& backend_;
  std::unique_ptr<Attention> room_;
  std::vector<std::string> unused_;
  std::vector<float> out_;
  // On the heap, so that a runner can move: states point to their pool. The pool outlives the state.
  std::unique_ptr<PagePool> pool_ = std::make_unique<PagePool>();
  std::unique_ptr<Arena> arena_ = std::make_unique<Arena>();
  std::unique_ptr<LayerState> state_;
};

struct Machine {
  std::string name;
  std::unique_ptr<Backend> backend;
};

Result<std::vector<Machine>> all_backends(int threads) {
  std::vector<Machine> all;
  all.push_back({"reference", make_reference_backend(threads)});
  for (const Isa isa : available_isas()) {
    ASSIGN_OR_RETURN(auto backend,
                     make_cpu_backend({.threads = threads, .isa = isa, .activations = Activations::kExact}));
    all.push_back({"cpu " + std::string(isa_name(isa)), std::move(backend)});
  }
  return all;
}

}  // namespace

double RoomReport::largest() const {
  double largest = 0;
  for (const RoomRun& run : runs) largest = std::max(largest, run.error);
  return largest;
}

int64_t RoomReport::failures() const {
  return std::count_if(runs.begin(), runs.end(), [](const RoomRun& run) { return !run.passed; });
}

Result<RoomReport> verify_room(const std::string& path, const VerifyOptions& options) {
  ASSIGN_OR_RETURN(const GoldenLayer golden, read_golden_layer(path));
  RoomReport report;
  report.file = path;
  report.room = golden.room;
  report.source = golden.source;
  report.tokens = golden.tokens;
  report.hidden = golden.hidden;
  report.notes = golden.notes;
  const std::vector<FeedPath> paths = feed_paths(golden.tokens, golden.period);
  ASSIGN_OR_RETURN(const std::vector<Machine> machines, all_backends(options.threads));
  for (const Machine& machine : machines) {
    for (const std::string& form : golden.forms) {
      ASSIGN_OR_RETURN(LayerRunner runner, LayerRunner::create(golden, form, *machine.backend));
      if (report.runs.empty()) {
        for (const std::string& name : runner.unused()) {
          report.notes.push_back("tensor " + printable(name) + " is none that room " + golden.room + " reads here");
        }
      }
      for (const FeedPath& feed : paths) {
        ASSIGN_OR_RETURN(const LayerRunner::Errors errors, runner.run(feed));
        for (const auto& [quantity, error] : errors) {
          report.runs.push_back({machine.name, (form.empty() ? "" : form + ", ") + feed.name, quantity, error,
                                 error <= options.limit});
        }
      }
    }
  }
  return report;
}

}  // namespace quipu
