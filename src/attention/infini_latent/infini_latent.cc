#include "attention/infini_latent/infini_latent.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace quipu {

Result<InfiniLatent::Settings> InfiniLatent::read_settings(const AttentionShape& shape, const HyperParameters& p) {
  Settings s;
  ASSIGN_OR_RETURN(s.latent, read_latent_settings(shape, p));
  ASSIGN_OR_RETURN(const std::string form, p.text_or("form", "absorbed"));
  if (form != "absorbed") return refused_setting(p, "form", form, "absorbed: a segment is short");
  s.latent.form = LatentForm::kAbsorbed;
  ASSIGN_OR_RETURN(const std::string memory, p.text("memory"));
  if (memory != "per_head" && memory != "latent") return refused_setting(p, "memory", memory, "per_head or latent");
  s.shared_memory = memory == "latent";
  s.latent.keeps_up = !s.shared_memory;
  MemoryShape inner{s.latent.heads, s.latent.heads, s.latent.nope_dim, s.latent.value_dim};
  if (s.shared_memory) {
    ASSIGN_OR_RETURN(s.key_dim, p.integer_or("memory_key_dim", 1, 1 << 16, 0));
    inner = {s.latent.heads, 1, s.key_dim > 0 ? s.key_dim : s.latent.rank, s.latent.rank};
  } else if (p.has("memory_key_dim")) {
    return bad_input(p.origin() + ": attention setting memory_key_dim is given, which only memory latent has");
  }
  ASSIGN_OR_RETURN(s.memory, read_memory_settings(inner, p));
  return s;
}

Result<std::unique_ptr<Attention>> InfiniLatent::create(const AttentionShape& shape, const HyperParameters& parameters,
                                                        WeightSource& weights, Backend& backend) {
  ASSIGN_OR_RETURN(Settings settings, read_settings(shape, parameters));
  std::unique_ptr<InfiniLatent> room(new InfiniLatent(std::move(settings)));
  const Settings& s = room->s_;
  ASSIGN_OR_RETURN(LatentAttention core, LatentAttention::create(s.latent, weights, backend));
  room->core_.emplace(std::move(core));
  ASSIGN_OR_RETURN(SegmentMemory memory,
                   SegmentMemory::create(s.memory, s.latent.hidden, kMemoryRegions, weights, backend));
  room->memory_.emplace(std::move(memory));
  if (s.key_dim > 0) {
    // fp32, as all that decides what is kept for ever.
    ASSIGN_OR_RETURN(const std::vector<float> key, weights.dense("memory_key_proj", s.key_dim, s.latent.rank,
                                                                 "memory_key_dim " + std::to_string(s.key_dim)));
    ASSIGN_OR_RETURN(room->key_, backend.pack({DType::kF32, s.key_dim, s.latent.rank, std::as_bytes(std::span(key))}));
  }
  return std::unique_ptr<Attention>(std::move(room));
}

StateLayout InfiniLatent::state_layout(const StateOptions& options) const {
  StateLayout layout;
  layout.rewind = Rewind::kNever;
  layout.regions.push_back({.name = "latent",
                            .dtype = core_->cache_dtype(options.cache_dtype),
                            .row_elements = s_.latent.width(),
                            .growth = Growth::kFixed,
                            .fixed_rows = s_.memory.local_pages() * kPageRows});
  memory_->declare(layout);
  return layout;
}

struct InfiniLatent::Step {
  Backend& backend;
  LatentAttention::Projected projected = {};
  MatrixView<float> heads = {};       // local attention, then the mixture
  LatentContext* contexts = nullptr;  // of every row
  std::byte** pages = nullptr;        // of every sequence
  DType dtype = DType::kF32;
};

int64_t InfiniLatent::scratch_bytes(int64_t rows) const {
  const auto floats = [rows](int64_t columns) { return Arena::planned<float>(rows * columns); };
  const LatentSettings& l = s_.latent;
  // Expanded rows; or absorbed queries, and what is made of them and of the latents.
  const int64_t input = s_.shared_memory ? floats(l.heads * l.rank) + floats(l.heads * s_.key_dim) + floats(s_.key_dim)
                                         : floats(l.heads * l.up_dim());
  return core_->scratch_bytes(rows) + memory_->scratch_bytes(rows) + input + 2 * floats(l.heads * l.value_dim) +
         Arena::planned<LatentContext>(rows) + Arena::planned<std::byte*>(rows * s_.memory.local_pages());
}

// What the memory is given. Neither part has seen a position: the rotary parts of query and row are left out.
MemoryInput InfiniLatent::memory_input(Step& step, Arena& scratch) const {
  const LatentSettings& l = s_.latent;
  const int64_t rows = step.projected.query.rows;
  const MatrixView<const float> latent = step.projected.latent.cols_from(0, l.rank);
  if (!s_.shared_memory) {
    const MatrixView<float> expanded = scratch.matrix(rows, l.heads * l.up_dim());
    core_->expand(step.backend, expanded, latent);
    return {.query = step.projected.query,
            .key = expanded,
            .value = expanded.cols_from(l.nope_dim, expanded.cols - l.nope_dim),
            .query_stride = l.query_dim(),
            .key_stride = l.up_dim(),
            .value_stride = l.up_dim()};
  }
  const MatrixView<float> query = scratch.matrix(rows, l.heads * l.rank);
  core_->absorb(step.backend, query, step.projected.query, l.rank);
  MemoryInput input{.query = query, .key = latent, .value = latent, .query_stride = l.rank};
  if (key_ == nullptr) return input;
  const MatrixView<float> short_query = scratch.matrix(rows, l.heads * s_.key_dim);
  const MatrixView<float> short_key = scratch.matrix(rows, s_.key_dim);
  step.backend.matmul({short_query.data, rows * l.heads, s_.key_dim}, *key_, {query.data, rows * l.heads, l.rank});
  step.backend.matmul(short_key, *key_, latent);
  input.query = short_query;
  input.key = short_key;
  input.query_stride = s_.key_dim;
  return input;
}

void InfiniLatent::open_pages(Step& step, const MemoryStep& memory) const {
  const int64_t pages = s_.memory.local_pages();
  for (size_t i = 0; i < memory.states.size(); ++i) {
    const RegionState& rows = memory.states[i]->region(kLatent);
    step.dtype = rows.spec.dtype;
    for (int64_t page = 0; page < pages; ++page) {
      step.pages[static_cast<int64_t>(i) * pages + page] = rows.pages[0] + page * kPageRows * rows.spec.bytes_per_row();
    }
  }
}

void InfiniLatent::attend_locally(Step& step, const MemoryStep& memory, Arena& scratch) const {
  const size_t pages = static_cast<size_t>(s_.memory.local_pages());
  for (const MemoryRun& run : memory.runs) {
    const std::span<std::byte* const> own(step.pages + static_cast<size_t>(run.sequence) * pages, pages);
    // The pages lie one after the other, and so do the rows in them.
    const int64_t bytes = row_bytes(step.dtype, s_.latent.width());
    std::memmove(own[0], own[0] + run.move_from * bytes, static_cast<size_t>(run.move_rows * bytes));
    for (int64_t i = 0; i < run.rows; ++i) {
      const int64_t row = run.row_begin + i, local = run.first_key + i;
      store_latent_row(own[static_cast<size_t>(local / kPageRows)], step.dtype, s_.latent.width(), local % kPageRows,
                       step.projected.latent.row(row));
      std::construct_at(step.contexts + row, LatentContext{.pages = own, .rows = local + 1});
    }
  }
  // Neighbouring rows together, though they may be of several sequences.
  for (size_t first = 0; first < memory.runs.size();) {
    const int64_t begin = memory.runs[first].row_begin;
    int64_t end = begin;
    while (first < memory.runs.size() && memory.runs[first].row_begin == end) end += memory.runs[first++].rows;
    core_->attend_heads(step.backend, step.heads.rows_from(begin, end - begin),
                        step.projected.query.rows_from(begin, end - begin),
                        {step.contexts + begin, static_cast<size_t>(end - begin)}, step.dtype, scratch);
  }
}

void InfiniLatent::forward(Backend& backend, MatrixView<float> out, MatrixView<const float> x, const RaggedBatch& batch,
                           Arena& scratch) const {
  const ArenaMark mark(scratch);
  const LatentSettings& l = s_.latent;
  Step step{.backend = backend};
  step.projected = core_->project(backend, x, batch.positions, scratch);
  step.heads = scratch.matrix(x.rows, l.heads * l.value_dim);
  step.contexts = scratch.take<LatentContext>(x.rows);
  step.pages = scratch.take<std::byte*>(x.rows * s_.memory.local_pages());
  const MemoryInput input = memory_input(step, scratch);
  MemoryStep memory = memory_->begin(backend, x, batch, scratch);
  open_pages(step, memory);
  while (memory_->next_runs(memory)) {
    attend_locally(step, memory, scratch);
    memory_->read_and_write(memory, input);
  }
  memory_->end(memory);
  for (const SequenceSlice& slice : batch.slices) slice.state->advance(slice.rows);
  MatrixView<float> read = memory_->reads(memory);
  if (s_.shared_memory) {
    const MatrixView<float> raised = scratch.matrix(x.rows, l.heads * l.value_dim);
    core_->raise_values(backend, raised, read);
    read = raised;
  }
  memory_->mix(memory, step.heads, read);
  core_->project_output(backend, out, step.heads);
}

int64_t InfiniLatent::weight_bytes() const {
  return core_->weight_bytes() + memory_->weight_bytes() + (key_ == nullptr ? 0 : key_->bytes());
}

int64_t InfiniLatent::flops_per_token() const {
  const LatentSettings& l = s_.latent;
  // per_head: keys and values of the row are made as well; latent: queries are absorbed and reads raised a second time.
  const int64_t again = 2 * l.heads * l.rank * l.up_dim();
  return core_->flops_per_token() + memory_->flops_per_token() + again + 2 * (l.heads + 1) * s_.key_dim * l.rank;
}

int64_t InfiniLatent::context_flops(int64_t tokens) const {
  return core_->flops_per_row() * s_.memory.tokens_seen(tokens);
}

int64_t InfiniLatent::context_bytes_read(int64_t tokens, const StateOptions& options) const {
  const int64_t row = state_layout(options).regions[kLatent].bytes_per_row();
  return std::min(tokens, s_.memory.local_tokens()) * row + memory_->bytes_read_per_token();
}

Result<std::unique_ptr<Attention>> create_infini_latent(const AttentionShape& shape, const HyperParameters& parameters,
                                                        WeightSource& weights, Backend& backend) {
  return InfiniLatent::create(shape, parameters, weights, backend);
}

}  // namespace quipu
