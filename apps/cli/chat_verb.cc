// quipu chat MODEL: a conversation at the terminal.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>

#include "base/byte_reader.h"
#include "base/near_word.h"
#include "base/user_folders.h"
#include "conversation.h"
#include "engine/engine.h"
#include "human_text.h"
#include "interrupt.h"
#include "line_editor.h"
#include "model_flags.h"
#include "progress_bar.h"
#include "report.h"
#include "text/tokenizer.h"
#include "verb.h"

namespace quipu::cli {
namespace {

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string system, load_state;
  bool raw = false, no_history = false;
};

constexpr std::string_view kChatHelp =
    "/save FILE    write the conversation's context to a file\n"
    "/load FILE    go on from such a file\n"
    "/clear        start anew (the system text stays)\n"
    "/system TEXT  set the system text and start anew\n"
    "/stats        speed, memory and context of this conversation\n"
    "/help         this list\n"
    "/exit         leave; Ctrl-D does too\n"
    "\"\"\"           begins and ends a text of several lines\n"
    "Ctrl-C stops an answer.\n";

class Chat {
 public:
  Chat(const ChatFlags& flags, Engine& engine, Session& session)
      : flags_(flags),
        engine_(engine),
        session_(session),
        conversation_(engine.tokenizer(), flags.raw ? nullptr : engine.chat_template(), session),
        editor_("> ", flags.no_history ? "" : user_state_folder() + "/history") {
    conversation_.set_system(flags.system);
    conversation_.forget_messages();
  }

  Result<void> loop() {
    if (editor_.interactive()) greet();
    std::string line;
    while (true) {
      switch (editor_.read(line)) {
        case LineEditor::Outcome::kEnd:
          if (editor_.interactive()) std::fputs("\n", stderr);
          return {};
        case LineEditor::Outcome::kInterrupted:
          if (!editor_.interactive()) return {};
          print_note("(/exit or Ctrl-D leaves)");
          continue;
        case LineEditor::Outcome::kLine: break;
      }
      if (line.starts_with("\"\"\"")) read_block(line);
      if (line.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (line[0] == '/') {
        if (!command(line)) return {};
        continue;
      }
      // A turn that fails leaves the conversation as it was; only a broken output ends the program.
      if (const auto answered = answer(line); !answered.ok()) {
        if (output_failed_) return answered;
        complain(answered.error());
      }
    }
  }

 private:
  void greet() const {
    const ModelFacts& facts = engine_.facts();
    print_note(printable(facts.name) + ", " + human_count(static_cast<double>(facts.parameters)) + " parameters, " +
               facts.quantisation + ", context " + grouped_count(session_.context()) + " tokens at " +
               human_bytes(facts.state_bytes_per_token) + " each. /help lists commands.");
    if (session_.tokens() > 0) {
      print_note("going on after " + grouped_count(session_.tokens()) + " tokens of saved context");
    }
  }

  static void complain(const Error& error) { std::fprintf(stderr, "quipu: %s\n", error.message.c_str()); }

  // Lines up to the closing """.
  void read_block(std::string& text) {
    text.erase(0, 3);
    const std::string usual = editor_.prompt();
    editor_.set_prompt(". ");
    std::string line;
    while (!text.ends_with("\"\"\"") && editor_.read(line) == LineEditor::Outcome::kLine) {
      text += (text.empty() ? "" : "\n") + line;
    }
    editor_.set_prompt(usual);
    if (text.ends_with("\"\"\"")) text.erase(text.size() - 3);
  }

  Result<void> answer(const std::string& text) {
    session_.clear_counters();
    {
      ProgressBar bar("reading", {.terminal_only = true});
      RETURN_IF_ERROR(conversation_.feed_user(
          text,
          [&bar](int64_t done, int64_t total) { bar.update(static_cast<double>(done), static_cast<double>(total)); },
          interrupt_flag()));
    }
    GenerateOptions options = generate_options(flags_.sampling);
    options.interrupted = interrupt_flag();
    Result<void> written;
    ASSIGN_OR_RETURN(const GenerateResult result, session_.generate(options, [&](std::string_view piece) {
      if (written.ok()) written = print_text(piece);
    }));
    clear_interrupt();
    conversation_.add_answer(result.text);
    if (written.ok()) written = print_text("\n");
    output_failed_ = !written.ok();
    if (result.finish == FinishReason::kInterrupted) print_note("(stopped)");
    if (result.finish == FinishReason::kContextFull) {
      print_note("(the context is full: /clear starts anew, --context gives more room)");
    }
    return written;
  }

  // False to leave.
  bool command(const std::string& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string name = line.substr(0, space);
    std::string rest = line.substr(std::min(line.find_first_not_of(' ', space), line.size()));
    while (rest.ends_with(' ')) rest.pop_back();
    if (name == "/exit" || name == "/quit" || name == "/bye") return false;
    if (name == "/help" || name == "/?") {
      std::fputs(std::string(kChatHelp).c_str(), stderr);
    } else if (name == "/clear") {
      finish(conversation_.clear(), "cleared");
    } else if (name == "/system") {
      conversation_.set_system(rest);
      finish(conversation_.clear(), rest.empty() ? "no system text; started anew" : "system text set; started anew");
    } else if (name == "/stats") {
      print_note(closing_line(engine_, session_, measured_roof(engine_.threads())));
      print_note(text_f("context %s of %s tokens", grouped_count(session_.tokens()).c_str(),
                        grouped_count(session_.context()).c_str()));
    } else if (name == "/save" || name == "/load") {
      if (rest.empty()) {
        std::fprintf(stderr, "quipu: %s needs a file name\n", name.c_str());
      } else if (name == "/save") {
        const auto bytes = session_.save_state(rest);
        if (bytes.ok()) {
          print_note("saved " + grouped_count(session_.tokens()) + " tokens to " + rest + " (" +
                     human_bytes(static_cast<double>(*bytes)) + ")");
        } else {
          complain(bytes.error());
        }
      } else {
        const auto loaded = session_.load_state(rest);
        if (loaded.ok()) conversation_.forget_messages();
        finish(loaded, "loaded " + rest + ": " + grouped_count(session_.tokens()) + " tokens");
      }
    } else {
      static const std::array<std::string, 7> kNames = {"save", "load", "clear", "system", "stats", "help", "exit"};
      const std::string near = nearest_word(std::string_view(name).substr(1), kNames);
      std::fprintf(stderr, "quipu: no command %s%s\n", printable(name).c_str(),
                   near.empty() ? "; /help lists them" : ("; did you mean /" + near + "?").c_str());
    }
    return true;
  }

  static void finish(const Result<void>& outcome, const std::string& done) {
    if (outcome.ok()) {
      print_note(done);
    } else {
      complain(outcome.error());
    }
  }

  const ChatFlags& flags_;
  Engine& engine_;
  Session& session_;
  Conversation conversation_;
  LineEditor editor_;
  bool output_failed_ = false;
};

Result<void> chat(const ChatFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, load_engine(flags.model, false));
  RETURN_IF_ERROR(require_tokenizer(*engine));
  if (engine->chat_template() == nullptr && !flags.raw) {
    print_note("this model has no chat template: your words are fed as they are, and it may just go on writing them");
  }
  ASSIGN_OR_RETURN(const int64_t context, chosen_context(flags.model, engine->facts(), 0));
  ASSIGN_OR_RETURN(const auto session, engine->new_session(context));
  if (!flags.load_state.empty()) RETURN_IF_ERROR(session->load_state(flags.load_state));
  return Chat(flags, *engine, *session).loop();
}

}  // namespace

Action declare_chat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  app.add_option("--system", flags->system, "instructions that stand before the conversation; also -sys");
  app.add_flag("--raw", flags->raw, "no chat template: every line as it is");
  add_sampling_flags(app, flags->sampling);
  app.add_option("--load-state", flags->load_state, "go on from a file that /save or --save-state wrote");
  add_model_flags(app, flags->model, /*with_context=*/true);
  app.add_flag("--no-history", flags->no_history, "do not keep what you type for the next time");
  return [flags] { return chat(*flags); };
}

}  // namespace quipu::cli
