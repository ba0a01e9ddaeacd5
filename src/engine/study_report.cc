// What a study leaves for people: JSON, a table, a picture; and the made-up language of its quick form.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/cpu_features.h"
#include "base/random.h"
#include "base/text_file.h"
#include "base/wall_clock.h"
#include "engine/study.h"

namespace quipu {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

template <class... Values>
std::string text_of(const char* format, Values... values) {
  char text[128];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

// --- JSON and table ----------------------------------------------------------------------------------------------------

ordered_json slices(const std::vector<StudySlice>& all) {
  ordered_json list = ordered_json::array();
  for (const StudySlice& s : all) list.push_back({{"from", s.from}, {"to", s.to}, {"loss", s.loss}, {"tokens", s.tokens}});
  return list;
}

ordered_json model_json(const StudyModelResult& r) {
  ordered_json cells = ordered_json::array(), speeds = ordered_json::array();
  for (const StudyCell& c : r.cells) {
    cells.push_back({{"seed", c.seed}, {"parameters", c.parameters}, {"steps", c.steps}, {"tokens", c.tokens}, {"training_seconds", c.seconds},
                     {"loss", c.loss}, {"unigram_loss", c.unigram_loss}, {"loss_by_position", slices(c.positions)}});
    if (!c.places.empty()) cells.back()["loss_by_place_in_chunk"] = slices(c.places);
    if (c.routed_differing >= 0) cells.back()["routed_differing"] = c.routed_differing;
  }
  for (const StudySpeed& s : r.decode) {
    speeds.push_back({{"context", s.context}, {"tokens_per_second", s.tokens_per_second}, {"state_bytes", s.state_bytes}});
  }
  ordered_json json = {{"name", r.model.name}, {"label", r.model.label}, {"attention", ordered_json::parse(r.model.attention)}};
  if (!r.model.mixture_of_depths.empty()) json["mixture_of_depths"] = ordered_json::parse(r.model.mixture_of_depths);
  if (r.model.shuffled) json["control"] = "tokens of every document in random order";
  json["training_flops_per_token"] = r.training_flops;
  if (!r.cells.empty()) json["mean_loss"] = r.mean_loss();
  if (r.cells.size() > 1) json["spread_of_seeds"] = r.spread();
  if (r.state_bytes_per_token > 0) json["state_bytes_per_token"] = r.state_bytes_per_token;
  json["seeds"] = cells;
  json["decode"] = speeds;
  return json;
}

std::string table(const StudyShape& shape, const std::vector<StudyModelResult>& results) {
  std::ostringstream out;
  out << "| model | seeds | parameters | loss | spread |";
  const StudyModelResult* example = nullptr;
  for (const StudyModelResult& r : results) {
    if (example == nullptr && !r.cells.empty()) example = &r;
  }
  if (example != nullptr) {
    for (const StudySlice& s : example->cells[0].positions) out << " " << s.from << "-" << s.to - 1 << " |";
  }
  out << " by place in a chunk | state, bytes a token |";
  for (const int64_t context : shape.contexts) out << " tokens/s at " << context << " |";
  out << "\n| --- | --- | --- | --- | --- |";
  for (size_t i = 0; example != nullptr && i < example->cells[0].positions.size(); ++i) out << " --- |";
  out << " --- | --- |";
  for (size_t i = 0; i < shape.contexts.size(); ++i) out << " --- |";
  out << "\n";
  for (const StudyModelResult& r : results) {
    if (r.cells.empty()) continue;
    const StudyCell& first = r.cells[0];
    out << "| " << r.model.label << " | " << r.cells.size() << " | " << first.parameters << " | " << text_of("%.4f", r.mean_loss()) << " | "
        << (r.cells.size() > 1 ? text_of("%.4f", r.spread()) : "") << " |";
    for (size_t i = 0; i < first.positions.size(); ++i) {
      double sum = 0;
      for (const StudyCell& c : r.cells) sum += c.positions[i].loss;
      out << " " << text_of("%.3f", sum / static_cast<double>(r.cells.size())) << " |";
    }
    out << " ";
    for (size_t i = 0; i < first.places.size(); ++i) out << (i > 0 ? ", " : "") << text_of("%.3f", first.places[i].loss);
    out << " | " << (r.state_bytes_per_token > 0 ? text_of("%.1f", r.state_bytes_per_token) : "") << " |";
    for (size_t i = 0; i < shape.contexts.size(); ++i) out << " " << (i < r.decode.size() ? text_of("%.0f", r.decode[i].tokens_per_second) : "") << " |";
    out << "\n";
  }
  return out.str();
}

// --- picture: loss against state ----------------------------------------------------------------------------------------

std::string picture(const StudyShape& shape, const std::vector<StudyModelResult>& results) {
  constexpr double kWidth = 860, kHeight = 520, kLeft = 70, kRight = 150, kTop = 60, kBottom = 60;
  double least = 1e9, most = -1e9, few = 1e18, many = 0;
  for (const StudyModelResult& r : results) {
    if (r.cells.empty() || r.state_bytes_per_token <= 0 || r.model.shuffled) continue;
    for (const StudyCell& c : r.cells) least = std::min(least, c.loss), most = std::max(most, c.loss);
    few = std::min(few, r.state_bytes_per_token);
    many = std::max(many, r.state_bytes_per_token);
  }
  std::ostringstream out;
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << kWidth << "\" height=\"" << kHeight << "\" viewBox=\"0 0 " << kWidth << " "
      << kHeight << "\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  const auto text = [&](double x, double y, const std::string& words, const char* style) {
    out << "<text x=\"" << x << "\" y=\"" << y << "\" " << style << ">" << words << "</text>\n";
  };
  text(kLeft, 30, "Held-out loss against the state kept of the context (" + shape.name + ")", "font-size=\"17\" font-weight=\"600\"");
  if (many == 0) {
    text(kLeft, 80, "nothing measured yet", "fill=\"#555\"");
    out << "</svg>\n";
    return out.str();
  }
  const double margin = std::max(0.08 * (most - least), 1e-3), low = std::log2(few) - 0.4, high = std::log2(many) + 0.4;
  least -= margin;
  most += margin;
  const auto x_of = [&](double bytes) { return kLeft + (std::log2(bytes) - low) / (high - low) * (kWidth - kLeft - kRight); };
  const auto y_of = [&](double loss) { return kTop + (most - loss) / (most - least) * (kHeight - kTop - kBottom); };
  for (int i = 0; i <= 4; ++i) {
    const double loss = least + (most - least) * i / 4;
    out << "<line x1=\"" << kLeft << "\" x2=\"" << kWidth - kRight << "\" y1=\"" << y_of(loss) << "\" y2=\"" << y_of(loss) << "\" stroke=\"#ddd\"/>\n";
    text(kLeft - 8, y_of(loss) + 4, text_of("%.3f", loss), "text-anchor=\"end\" fill=\"#555\"");
  }
  for (int power = static_cast<int>(std::ceil(low)); power <= static_cast<int>(high); power += high - low > 8 ? 2 : 1) {
    const double bytes = std::exp2(power);
    text(x_of(bytes), kHeight - kBottom + 20, text_of("%.4g", bytes), "text-anchor=\"middle\" fill=\"#555\"");
  }
  text((kLeft + kWidth - kRight) / 2, kHeight - 16, text_of("bytes of state a token at %lld tokens, f16", static_cast<long long>(shape.contexts.back())),
       "text-anchor=\"middle\"");
  text(kLeft, kTop - 12, "nats a token, mean of the seeds; lines: all seeds", "fill=\"#555\" font-size=\"11.5\"");
  for (const StudyModelResult& r : results) {
    if (r.cells.empty() || r.state_bytes_per_token <= 0 || r.model.shuffled) continue;
    const double x = x_of(r.state_bytes_per_token);
    const auto [best, worst] = std::ranges::minmax(r.cells, {}, &StudyCell::loss);
    out << "<line x1=\"" << x << "\" x2=\"" << x << "\" y1=\"" << y_of(best.loss) << "\" y2=\"" << y_of(worst.loss) << "\" stroke=\"#2a6f97\" stroke-width=\"2\"/>\n"
        << "<circle cx=\"" << x << "\" cy=\"" << y_of(r.mean_loss()) << "\" r=\"5\" fill=\"#2a6f97\"/>\n";
    text(x + 9, y_of(r.mean_loss()) + 4, r.model.label, "fill=\"#222\"");
  }
  out << "</svg>\n";
  return out.str();
}

// --- the made-up language ------------------------------------------------------------------------------------------------

// A document: which of the words stands for which thing is its own choice, and it says so again and again.
std::string made_up_document(uint64_t seed) {
  static constexpr const char* kNames[] = {"anna", "boris", "clara", "david", "emma", "frank", "greta", "henry"};
  static constexpr const char* kVerbs[] = {"keeps", "likes", "sells", "finds"};
  static constexpr const char* kThings[] = {"apples", "bridges", "candles", "drums", "engines", "flutes", "globes", "horses",
                                            "islands", "jewels", "kettles", "lanterns", "mirrors", "needles", "organs", "pearls"};
  RandomStream random(seed, 0x5717d1);
  const char* thing[std::size(kNames)][std::size(kVerbs)];
  for (auto& row : thing) {
    for (const char*& one : row) one = kThings[random.below(std::size(kThings))];
  }
  std::string text;
  for (int sentence = 0; sentence < 160; ++sentence) {
    const size_t name = random.below(std::size(kNames)), verb = random.below(std::size(kVerbs));
    text += std::string(kNames[name]) + " " + kVerbs[verb] + " " + thing[name][verb] + (random.below(3) == 0 ? " every day" : "") + ".\n";
  }
  return text;
}

}  // namespace

Result<void> write_study(const StudyShape& shape, const std::vector<StudyModelResult>& results, const ReproduceOptions& options) {
  ordered_json models = ordered_json::array();
  for (const StudyModelResult& r : results) models.push_back(model_json(r));
  const ordered_json json = {{"study", shape.name},
                             {"commit", build_commit()},
                             {"machine", cpu_model_name()},
                             {"date", utc_now()},
                             {"command", "quipu reproduce " + shape.name + (options.quick ? " --quick" : "") + (options.steps > 0 ? " --steps " + std::to_string(options.steps) : "")},
                             {"threads", options.threads},
                             {"shape", {{"hidden", shape.hidden}, {"layers", shape.layers}, {"vocabulary", shape.vocabulary},
                                        {"sequence", shape.sequence}, {"batch", shape.batch}, {"steps", shape.steps},
                                        {"learning_rate", shape.learning_rate}, {"deviation", shape.deviation}}},
                             {"loss", "nats a token of held-out documents, positions below " + std::to_string(shape.sequence)},
                             {"models", models}};
  RETURN_IF_ERROR(write_text_file(options.work + "/" + shape.name + ".json", json.dump(1) + "\n"));
  RETURN_IF_ERROR(write_text_file(options.work + "/" + shape.name + ".md", table(shape, results)));
  return write_text_file(options.work + "/" + shape.name + ".svg", picture(shape, results));
}

Result<void> write_quick_corpus(const std::string& folder) {
  constexpr int kTraining = 400, kHeldOut = 12;
  if (fs::exists(folder + "/held_out/0.txt")) return {};
  for (const char* part : {"/train", "/held_out"}) {
    std::error_code code;
    fs::create_directories(folder + part, code);
    if (code) return failed(folder + part + ": cannot make the folder: " + code.message());
  }
  for (int i = kTraining + kHeldOut; i-- > 0;) {
    const bool held_out = i < kHeldOut;
    RETURN_IF_ERROR(write_text_file(folder + (held_out ? "/held_out/" : "/train/") + std::to_string(i) + ".txt", made_up_document(static_cast<uint64_t>(i))));
  }
  return {};
}

}  // namespace quipu
