// quipu, quipu help, quipu help VERB; and the table of verbs.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/byte_reader.h"
#include "base/near_word.h"
#include "human_text.h"
#include "progress_bar.h"
#include "verb.h"

namespace quipu::cli {
namespace {

constexpr Verb kVerbs[] = {
    {"run", "", "answer one prompt, streaming", "quipu run MODEL [-p PROMPT | -f FILE | < FILE] [flags]",
     "The model's own chat template is applied unless --raw is given or the model has none. The answer goes to "
     "standard\n"
     "output; a closing line on standard error gives speeds, the share of the machine's memory roof, the size of the\n"
     "context memory and a hash of the last logits. Ctrl-C ends the answer cleanly; a second Ctrl-C leaves at once.",
     "quipu run smollm2 -p \"Why is the sky blue?\"\n"
     "quipu run model.gguf -f question.txt -n 200 --temperature 0\n"
     "git diff | quipu run model.gguf --system \"Write a commit message.\"\n"
     "quipu run model.gguf -f book.txt -n 0 --save-state book.state      # read once\n"
     "quipu run model.gguf --load-state book.state -p \"Who is Ahab?\"     # ask later, without reading again\n"
     "quipu run base.gguf --raw -p \"Once upon a time\" -n 64 --json",
     declare_run},
    {"chat", "", "talk with a model", "quipu chat MODEL [--system TEXT] [flags]",
     "Line editing and history; only what is new is fed to the model. Inside: /save FILE, /load FILE, /clear, /system "
     "TEXT,\n"
     "/stats, /help, /exit. Ctrl-C stops an answer, Ctrl-D leaves.",
     "quipu chat smollm2\n"
     "quipu chat model.gguf --system \"You are brief.\" --context 16k\n"
     "quipu chat model.gguf --load-state yesterday.state",
     declare_chat},
    {"inspect", "show", "what a model file is and what its context costs", "quipu inspect MODEL [--tensors] [--json]",
     "",
     "quipu inspect model.gguf\n"
     "quipu inspect model.gguf --tensors\n"
     "quipu inspect model.gguf --cache-type q8_0 --json",
     declare_inspect},
    {"tokenize", "tokenise", "text to token ids", "quipu tokenize MODEL [-p TEXT | -f FILE | < FILE] [flags]", "",
     "quipu tokenize smollm2 -p \"Hello world\"\n"
     "quipu tokenize model.gguf -f book.txt --count\n"
     "quipu tokenize model.gguf -p \"a b\" --json",
     declare_tokenize},
    {"perplexity", "ppl", "how well a model predicts a text", "quipu perplexity MODEL FILE [--context 512] [flags]",
     "The text is cut into chunks of --context tokens; the second half of each is scored, as llama-perplexity does, so "
     "the\n"
     "numbers compare. --all-positions scores every token that has one before it.",
     "quipu perplexity model.gguf wiki.test.raw\n"
     "quipu perplexity model.gguf book.txt --context 2048 --chunks 8 --json\n"
     "quipu perplexity model.gguf book.txt --logits-out top.npy --logits-top 40",
     declare_perplexity},
    {"quantise", "quantize", "write a smaller copy of a model", "quipu quantise IN OUT --type TYPE", "",
     "quipu quantise model-f16.gguf model-q8_0.gguf --type q8_0\n"
     "quipu quantise model-bf16.gguf model-q4_k_m.gguf --type q4_k_m",
     declare_quantise},
    {"init", "", "a new model with random weights", "quipu init CONFIG OUT --seed N [--dtype bf16] [--tokenizer FOLDER]",
     "CONFIG is a config.json (docs/file_formats.md), or a folder that holds one; OUT becomes a Hugging Face folder: to train\n"
     "from, or to measure a shape with. Equal seeds give equal bytes, whatever the number of threads.",
     "quipu init config.json my-model --seed 1\n"
     "quipu init smollm2-folder fresh --dtype bf16 --seed 7 --json\n"
     "quipu init config.json my-model --tokenizer smollm2-folder --force",
     declare_init},
    {"bench", "", "how fast a model runs here",
     "quipu bench MODEL [--prompt 512,2048] [--generate 64] [--depth 0,4096] [flags]",
     "Names are llama-bench's: pp512 feeds 512 tokens, tg64 generates 64, @ d4096 with 4096 tokens in the context "
     "already.\n"
     "Each figure is the median of --repeat runs, with the lowest and highest, and its share of the memory roof "
     "measured\n"
     "in the same run. Every repetition must give the same logits, or the bench fails.",
     "quipu bench model.gguf\n"
     "quipu bench model.gguf --prompt 512,2048 --generate 64 --depth 0,4k,32k --cache-type q8_0\n"
     "quipu bench model.gguf -p 0 -n 32 -d 16k -r 3 --json",
     declare_bench},
    {"cost", "", "what a context costs, with every kind of memory", "quipu cost CONFIG|MODEL [--context 4k,32k,1M] [--plot FILE]",
     "State, operations and bytes moved per token, and operations of a prompt, for the model as it is and for the same model\n"
     "with each other memory in its layers: MHA, GQA, MQA, MLA, MTLA, Infini-attention, each also with Mixture-of-Depths.\n"
     "CONFIG is a config.json, a folder that holds one (weights are not needed), or a GGUF file. The rule by which the other\n"
     "memories were given a size stands under the table.",
     "quipu cost model.gguf\n"
     "quipu cost hf-folder/config.json --context 4k,32k,1M --plot costs.svg\n"
     "quipu cost smollm2 --context 1M --cache-type bf16 --json",
     declare_cost},
    {"bench-rooms", "", "how fast every kind of memory is here", "quipu bench-rooms [--shape NAME|CONFIG] [--context 1k,32k] [--batch 1,8] [flags]",
     "Random models of one shape with each memory in turn are filled to each depth and stepped. What would not fit in memory\n"
     "or time is left out, with the reason. Deep contexts of memories that grow are filled with random rows instead of a\n"
     "prompt (the column 'filled' says so); prompts are measured up to --prompt tokens. Ctrl-C keeps what was measured.",
     "quipu bench-rooms --shape mtla --context 1k,4k,32k --batch 1,50\n"
     "quipu bench-rooms --shape smollm2 --context 32k --rooms mha,gqa,mla,mtla3 --json rooms.json --plot rooms.svg\n"
     "quipu bench-rooms --context 1k,1M --rooms mqa,mla --json rooms.json --add --png rooms.png\n"
     "quipu bench-rooms --shape config.json --context 1M --budget 300 --png rooms.png",
     declare_bench_rooms},
    {"reproduce", "", "a published table, measured here", "quipu reproduce NAME [--quick] [--json]",
     "Prints the paper's figure, ours, and whether ours holds, with the command of each; the exit code is 1 when one does not.\n"
     "--list names what there is. --quick measures less.",
     "quipu reproduce --list\n"
     "quipu reproduce costs --quick\n"
     "tools/fetch_corpus && quipu reproduce variants --work variants\n"
     "quipu reproduce costs --json > costs.json",
     declare_reproduce},
    {"demo", "", "a number found in a million tokens", "quipu demo passkey [--length 1M] [--position 0.5] [--seed N] [--json]",
     "Hides a five-digit key in a text of that many tokens and asks for it at the end. The model is a small one with\n"
     "Infini-attention that comes with the program: its memory of the text has one size, whatever the length. The exit code\n"
     "is 1 when the answer is wrong. How it was trained, and how often it is right: docs/passkey.md.",
     "quipu demo passkey\n"
     "quipu demo passkey --length 4M --position 0\n"
     "quipu demo passkey --length 32k --seed 7 --json",
     declare_demo},
    {"verify-room", "", "an attention layer against other people's numbers", "quipu verify-room FILE... [--json]",
     "A golden file is safetensors: metadata names the room (kind of attention) and its settings; tensors carry the\n"
     "published module's names, its input and its output. The layer runs on every back end and path it has; the exit code\n"
     "is 1 when one is further than 1e-5 from the file (largest difference over largest output), 3 when a file is bad.",
     "quipu verify-room latent.safetensors\n"
     "quipu verify-room golden/*.safetensors --json",
     declare_verify_room},
    {"train", "", "train a model", "quipu train CONFIG.toml [--resume] [flags]",
     "The file says what to train, on what and how; docs/training.md explains every key. Weights, moments and the position in\n"
     "the data are saved every few minutes and at Ctrl-C; --resume continues bit for bit. The finished model is a folder that\n"
     "'quipu run' reads; report.html beside it shows the curves. 'mpirun -np 2 quipu train ...' spreads a batch over\n"
     "processes.",
     "quipu train run.toml\n"
     "quipu train run.toml --resume --steps 4000\n"
     "quipu train run.toml --set optimizer.learning_rate=3e-4 --out out-slow --json\n"
     "mpirun -np 2 quipu train run.toml\n"
     "\n"
     "# run.toml\n"
     "[model]\n"
     "config = \"config.json\"\n"
     "[data]\n"
     "train = [\"books/\"]\n"
     "tokenizer = \"tokenizer.json\"\n"
     "held_out_fraction = 0.02\n"
     "[train]\n"
     "steps = 2000\n"
     "batch = 16\n"
     "sequence = 512\n"
     "[output]\n"
     "folder = \"out\"",
     declare_train},
    {"tokenizer", "", "learn a vocabulary from text", "quipu tokenizer train FILES... --vocab-size N -o tokenizer.json",
     "Byte-level BPE: words are cut as GPT-2 or Llama 3 cut them, and the most frequent neighbours are joined until there are\n"
     "N tokens. Equal texts give an equal file; Hugging Face `tokenizers` reads it and gives the same ids.",
     "quipu tokenizer train book.txt --vocab-size 8000 -o tokenizer.json\n"
     "quipu tokenizer train corpus/*.txt --vocab-size 32000 --pattern llama3 -o tokenizer.json --json",
     declare_tokenizer},
    {"help", "", "this page, or one verb's", "quipu help [VERB]", "", "quipu help run", declare_help},
    {"version", "", "version, instruction set, machine", "quipu version [--json]", "", "quipu version --json",
     declare_version},
};

std::string bold(std::string_view text) {
  const bool colour = colour_wanted(stdout);
  return (colour ? "\033[1m" : "") + std::string(text) + (colour ? "\033[0m" : "");
}

// Lines as wide as the terminal, but not so wide that the eye loses them.
size_t page_columns() {
  constexpr int kWidest = 100;
  return static_cast<size_t>(std::min(terminal_columns(), kWidest));
}

std::string indented(std::string_view text) {
  std::string out = "  ";
  for (const char c : text) {
    out += c;
    if (c == '\n') out += "  ";
  }
  return out;
}

// "-n, --tokens N": short names first, as people read them.
std::string flag_spelling(const CLI::Option& option) {
  std::string text;
  for (const std::string& name : option.get_snames()) text += (text.empty() ? "-" : ", -") + name;
  for (const std::string& name : option.get_lnames()) text += (text.empty() ? "--" : ", --") + name;
  return text;
}

}  // namespace

std::span<const Verb> all_verbs() { return kVerbs; }

const Verb* find_verb(std::string_view name) {
  for (const Verb& verb : kVerbs) {
    if (verb.name == name || (!verb.alias.empty() && verb.alias == name)) return &verb;
  }
  return nullptr;
}

void print_overview() {
  std::printf("quipu runs language models (GGUF files, Hugging Face folders) on this processor.\n\n");
  std::printf("%s quipu VERB MODEL [flags]\n\n", bold("usage:").c_str());
  for (const Verb& verb : kVerbs) {
    std::printf("  %-11s %s\n", std::string(verb.name).c_str(), std::string(verb.summary).c_str());
  }
  std::printf("\n%s\n", bold("try:").c_str());
  std::printf("  quipu run smollm2 -p \"Why is the sky blue?\"   one answer (./quickstart fetched it)\n");
  std::printf("  quipu chat model.gguf                         a conversation\n");
  std::printf("  quipu inspect model.gguf                      what it is, what N tokens cost\n");
  std::printf("  quipu bench model.gguf --depth 0,4k           speed, with llama-bench's names\n");
  std::printf(
      "\n'quipu help VERB' shows every flag with examples. llama.cpp's flags work:\n"
      "-m -p -f -n -c -t -b -s --temp -ctk -ctv and others.\n");
  std::printf("Exit codes: 0 done, 1 the machine failed, 2 asked wrongly, 3 a file is bad.\n");
}

void print_verb_help(const Verb& verb) {
  CLI::App app{std::string(verb.summary), "quipu " + std::string(verb.name)};
  app.set_help_flag("");
  static_cast<void>(verb.declare(app));
  std::printf("quipu %s: %s\n\n", std::string(verb.name).c_str(), std::string(verb.summary).c_str());
  std::printf("%s %s\n", bold("usage:").c_str(), std::string(verb.synopsis).c_str());
  if (!verb.alias.empty()) std::printf("       (also: quipu %s)\n", std::string(verb.alias).c_str());
  if (!verb.details.empty()) std::printf("\n%s\n", wrapped(verb.details, page_columns()).c_str());
  bool heading = false;
  constexpr size_t kSpellingColumns = 26;
  for (const CLI::Option* option : app.get_options()) {
    const std::string spelling = flag_spelling(*option);
    if (spelling.empty()) continue;
    if (!heading) std::printf("\n%s\n", bold("flags:").c_str());
    heading = true;
    // A long list of spellings gets a line of its own.
    const std::string gap = spelling.size() > kSpellingColumns
                                ? "\n" + std::string(kSpellingColumns + 3, ' ')
                                : std::string(kSpellingColumns + 1 - spelling.size(), ' ');
    const std::string description = wrapped(option->get_description(), page_columns(), kSpellingColumns + 3);
    std::printf("  %s%s%s\n", spelling.c_str(), gap.c_str(), description.c_str());
  }
  std::printf("\n%s\n%s\n", bold("examples:").c_str(), indented(verb.examples).c_str());
}

Action declare_help(CLI::App& app) {
  auto word = std::make_shared<std::string>();
  app.add_option("VERB", *word, "the verb to explain");
  return [word]() -> Result<void> {
    if (word->empty()) {
      print_overview();
      return {};
    }
    const Verb* verb = find_verb(*word);
    if (verb == nullptr) {
      std::vector<std::string> names;
      for (const Verb& known : kVerbs) names.emplace_back(known.name);
      const std::string near = nearest_word(*word, names);
      return usage_error("no verb named " + printable(*word) +
                         (near.empty() ? "; 'quipu help' lists them" : "; did you mean " + near + "?"));
    }
    print_verb_help(*verb);
    return {};
  };
}

}  // namespace quipu::cli
