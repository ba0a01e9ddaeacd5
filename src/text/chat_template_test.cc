// Chat templates against Jinja 3.1 (goldens by tools/make_chat_template_goldens.py) and against hostile input.
#include "text/chat_template.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/default_model_for_test.h"

namespace quipu {
namespace {

using nlohmann::ordered_json;

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

ordered_json golden(const std::string& name) {
  return ordered_json::parse(read_text(std::string(QUIPU_SOURCE_DIR) + "/src/text/jinja/testdata/" + name));
}

// The moment the goldens were made at.
std::tm golden_now() {
  std::tm time{};
  time.tm_year = 125;
  time.tm_mon = 2;
  time.tm_mday = 7;
  time.tm_hour = 14;
  time.tm_min = 5;
  time.tm_sec = 9;
  time.tm_wday = 5;
  time.tm_yday = 65;
  return time;
}

// Renders with exactly these variables, as the oracle did.
Result<std::string> render_with(const std::string& source, const ordered_json& variables, const jinja::Limits& limits = {}) {
  ChatTemplateOptions options;
  options.limits = limits;
  options.now = golden_now;
  std::string messages = "[]";
  for (const auto& [name, value] : variables.items()) {
    if (name == "messages") messages = value.dump();
    else options.variables_json.emplace_back(name, value.dump());
  }
  ASSIGN_OR_RETURN(const ChatTemplate parsed, ChatTemplate::parse(source));
  return parsed.render_json(messages, options);
}

Result<std::string> render(const std::string& source, const jinja::Limits& limits = {}) {
  return render_with(source, ordered_json::object(), limits);
}

std::string error_of(const std::string& source, const jinja::Limits& limits = {}) {
  const Result<std::string> result = render(source, limits);
  return result.ok() ? "no error; printed " + result->substr(0, 200) : result.error().message;
}

void expect_golden(const std::string& source, const ordered_json& variables, const ordered_json& expected, const std::string& what) {
  const Result<std::string> got = render_with(source, variables);
  if (expected.contains("raises")) {
    EXPECT_FALSE(got.ok()) << what << "\nraises " << expected["raises"] << " in Python, but we printed\n" << *got;
    return;
  }
  ASSERT_TRUE(got.ok()) << what << "\n" << got.error().message << "\nPython printed\n" << expected["output"].get<std::string>();
  EXPECT_EQ(*got, expected["output"].get<std::string>()) << what;
}

TEST(ChatTemplate, SnippetsOfTheLanguagePrintWhatJinjaPrints) {
  const ordered_json snippets = golden("snippets.json");
  ASSERT_GE(snippets.size(), 500u);
  for (const auto& snippet : snippets) {
    const std::string source = snippet["source"];
    expect_golden(source, snippet["variables"], snippet, source);
  }
}

TEST(ChatTemplate, EveryFamilyRendersEveryConversationAsJinjaDoes) {
  const ordered_json file = golden("conversations.json");
  ASSERT_GE(file["templates"].size(), 12u);
  ASSERT_GE(file["conversations"].size(), 15u);
  for (const auto& entry : file["templates"]) {
    for (size_t i = 0; i < file["conversations"].size(); ++i) {
      const std::string what = entry["name"].get<std::string>() + ", conversation " + std::to_string(i);
      expect_golden(entry["source"], file["conversations"][i], entry["results"][i], what);
    }
  }
}

void expect_real_template(const std::string& name, const std::string& source) {
  const ordered_json conversations = golden("conversations.json")["conversations"];
  for (const auto& entry : golden("real_templates.json")) {
    if (entry["name"] != name) continue;
    ASSERT_EQ(source.size(), entry["bytes"].get<size_t>()) << "another version of the template than the goldens'";
    for (size_t i = 0; i < conversations.size(); ++i) {
      expect_golden(source, conversations[i], entry["results"][i], name + ", conversation " + std::to_string(i));
    }
    return;
  }
  FAIL() << "no goldens for " << name;
}

TEST(ChatTemplate, TheRealTemplatesOfQwen3AndDeepSeekV3RenderAsJinjaDoes) {
  const std::string folder = std::string(QUIPU_SOURCE_DIR) + "/../shared/data/tokenizers/";
  for (const std::string name : {"deepseek_v3", "qwen3"}) {
    const std::string text = read_text(folder + name + "/tokenizer_config.json");
    if (text.empty()) GTEST_SKIP() << "no " << folder << name << "/tokenizer_config.json";
    expect_real_template(name, ordered_json::parse(text)["chat_template"]);
  }
}

TEST(ChatTemplate, TheTemplateInsideTheSmolLm2GgufRendersAsJinjaDoes) {
  const auto path = default_model_for_test();
  if (!path) GTEST_SKIP() << kNoDefaultModel;
  const std::string file = read_text(*path), key = "tokenizer.chat_template";
  const size_t at = file.find(key);
  ASSERT_NE(at, std::string::npos);
  uint64_t size = 0;
  std::memcpy(&size, file.data() + at + key.size() + 4, sizeof size);
  expect_real_template("smollm2_gguf", file.substr(at + key.size() + 12, size));
}

TEST(ChatTemplate, MessagesFromCodeRenderLikeTheSameMessagesAsJson) {
  const auto parsed = ChatTemplate::parse("{{ bos_token }}{% for m in messages %}{{ m|tojson }}\n{% endfor %}{{ tools }}{{ extra }}{{ eos_token }}");
  ASSERT_TRUE(parsed.ok());
  std::vector<ChatMessage> messages = {
      {.role = "user", .content = "hé", .content_json = "", .fields_json = ""},
      {.role = "assistant", .content = std::nullopt, .content_json = "", .fields_json = R"({"tool_calls": [{"id": 1}]})"},
      {.role = "user", .content = std::nullopt, .content_json = R"([{"type": "text"}])", .fields_json = ""}};
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.variables_json = {{"extra", "[1, null]"}};
  const auto text = parsed->render(messages, options);
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(*text, "<s>{\"role\": \"user\", \"content\": \"hé\"}\n"
                   "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": 1}]}\n"
                   "{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}\nNone[1, None]");
}

TEST(ChatTemplate, ContentIsNeverReadAsTemplate) {
  const auto parsed = ChatTemplate::parse("{% for m in messages %}{{ m.content }}{{ '%s' % m.content }}{{ '{}'.format(m.content) }}{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  const std::string hostile = "{{ raise_exception('x') }}{% for %}{# %s {0.__class__} {x}";
  const auto text = parsed->render({{.role = "user", .content = hostile, .content_json = "", .fields_json = ""}}, {});
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(*text, hostile + hostile + hostile);
}

TEST(ChatTemplate, ErrorsNameTheLineAndTheCause) {
  EXPECT_EQ(error_of("a\n{% if x %}\n{{ 1 + }}"), "chat template: line 3: expected an expression, found '}}'");
  EXPECT_EQ(error_of("a\n\n{{ x.y }}"), "chat template: line 3: 'x' is undefined");
  EXPECT_EQ(error_of("{{ x.y.z }}"), "chat template: line 1: 'x' is undefined");
  EXPECT_EQ(error_of("{% set a = 'b' %}\n{{ a + 1 }}"), "chat template: line 2: cannot compute str + int");
  EXPECT_EQ(error_of("{{ raise_exception('only one system message') }}"),
            "chat template: line 1: the template refuses this conversation: only one system message");
  EXPECT_EQ(error_of("{% include 'x' %}"), "chat template: line 1: unknown or unsupported tag 'include'");
  EXPECT_EQ(error_of("\n{{ 'a'|shout }}"), "chat template: line 2: there is no filter 'shout'");
  EXPECT_EQ(error_of("{{ [1) }}"), "chat template: line 1: unexpected ')', expected ']'");
  EXPECT_EQ(error_of("{% if a %}\n"), "chat template: line 1: template ends where {% endif %} was expected");
}

TEST(ChatTemplate, BadMessagesAreRefusedByPosition) {
  const auto parsed = ChatTemplate::parse("{{ messages|length }}");
  ASSERT_TRUE(parsed.ok());
  const auto error = [&](ChatMessage message) {
    const auto result = parsed->render({{.role = "user", .content = "", .content_json = "", .fields_json = ""}, std::move(message)}, {});
    return result.ok() ? "no error" : result.error().message;
  };
  EXPECT_EQ(error({.role = "user", .content = "a\xFF", .content_json = "", .fields_json = ""}),
            "chat template: messages[1].content is not valid UTF-8 at byte 1");
  EXPECT_EQ(error({.role = "user", .content = "", .content_json = "[1", .fields_json = ""}),
            "chat template: messages[1].content: not valid JSON at byte 3");
  EXPECT_EQ(error({.role = "user", .content = "", .content_json = "", .fields_json = "[]"}),
            "chat template: messages[1]: further fields must be a JSON object");
  EXPECT_EQ(error({.role = "user", .content = "", .content_json = std::string(100000, '['), .fields_json = ""}),
            "chat template: messages[1].content: JSON nested deeper than 100");
  const auto not_a_list = parsed->render_json("{}", {});
  ASSERT_FALSE(not_a_list.ok());
  EXPECT_EQ(not_a_list.error().message, "chat template: messages: expected a JSON array, found dict");
}

std::string repeated(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

// ---- hostile templates (serving-reliability F31 and more): an error or an answer, at once, and never a crash ----

TEST(HostileTemplate, EndlessNestingIsRefused) {
  EXPECT_EQ(error_of(repeated("{% if 1 %}", 50000)), "chat template: line 1: statements nested deeper than 100");
  EXPECT_EQ(error_of(repeated("{% for a in b %}", 50000)), "chat template: line 1: statements nested deeper than 100");
  EXPECT_EQ(error_of(repeated("{% if 1 %}{% else %}", 50000)), "chat template: line 1: statements nested deeper than 100");
  for (const char* bracket : {"(", "[", "{", "{1:", "f(", "a[", "-(", "not(", "(1,", "x|f(", "x is f("}) {
    const std::string message = error_of("{{ " + repeated(bracket, 200000 / 4) + " }}");
    EXPECT_NE(message.find("nested deeper than 100"), std::string::npos) << bracket << ": " << message;
  }
  EXPECT_EQ(error_of("{{ " + repeated("(", 1000000)), "chat template: line 1: brackets nested deeper than 100");
}

TEST(HostileTemplate, EndlessChainsAreRefusedOrWork) {
  for (const char* link : {"|trim", ".a", "[0]", "()", " is defined", "|d(1)|d(2)"}) {
    const std::string message = error_of("{{ a" + repeated(link, 50000) + " }}");
    EXPECT_NE(message.find("chat template: line 1: "), std::string::npos) << link << ": " << message;
  }
  for (const char* prefix : {"not ", "-", "+", "- -", "not not "}) {
    const std::string message = error_of("{{ " + repeated(prefix, 50000) + "1 }}");
    EXPECT_NE(message.find("nested deeper than 100"), std::string::npos) << prefix << ": " << message;
  }
  EXPECT_NE(error_of("{{ " + repeated("1 if 1 else ", 50000) + "1 }}").find("nested deeper"), std::string::npos);
  EXPECT_NE(error_of("{{ 1" + repeated(" if 1", 50000) + " }}").find("200 operations deep"), std::string::npos);
  for (const auto& [link, expected] : {std::pair<std::string, std::string>{" + 1", "50001"}, {" - 1", "-49999"}, {" * 1", "1"},
                                       {" and 1", "1"}, {" or 1", "1"}, {" == 1", "True"}, {" ** 1", "1"}}) {
    const auto result = render("{{ 1" + repeated(link, 50000) + " }}");
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_EQ(*result, expected) << link;
  }
  const auto joined = render("{{ 'a'" + repeated(" + 'b'", 50000) + repeated(" ~ 'c'", 50000) + " }}");
  ASSERT_TRUE(joined.ok()) << joined.error().message;
  EXPECT_EQ(joined->size(), 100001u);
  EXPECT_TRUE(render("{% if 0 %}" + repeated("{% elif 0 %}", 50000) + "{% endif %}").ok());
}

TEST(HostileTemplate, CostIsBounded) {
  // Smaller than the defaults, which take seconds to reach under a sanitizer.
  const jinja::Limits limits{.steps = 300'000, .work_bytes = 64 << 20, .memory_bytes = 32 << 20, .output_bytes = 1 << 20};
  const auto expect_limit = [&](const std::string& source, const std::string& message) {
    const std::string error = error_of(source, limits);
    EXPECT_NE(error.find(message), std::string::npos) << source.substr(0, 80) << ": " << error;
  };
  expect_limit("{% for i in range(10**9) %}{% endfor %}", "limit 100000");
  expect_limit("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps");
  expect_limit("{{ 'a' * 10**12 }}", "bytes of memory");
  expect_limit("{{ 'a' * 10**30 }}", "bytes of memory");
  expect_limit("{{ [0] * 10**9 }}", "bytes of memory");
  expect_limit("{{ 'ab' * 10**7 }}", "output is more than");
  expect_limit("{% for i in range(99999) %}" + std::string(1000, 'x') + "{% endfor %}", "output is more than");
  expect_limit("{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "bytes of memory");
  expect_limit("{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "rendering");
  expect_limit("{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('x', 'xx') %}{% endfor %}", "rendering");
  expect_limit("{% set s = 'a' * 10**7 %}{% for i in range(99999) %}{% set x = s[-1] %}{% endfor %}", "bytes of text");
  expect_limit("{% set s = 'a' * 10**7 %}{% for i in range(99999) %}{% set x = 'b' in s %}{% endfor %}", "bytes of text");
  expect_limit("{{ 'a'|indent(10**12) }}", "bytes of memory");
  expect_limit("{{ 'a'|center(10**12) }}", "bytes of memory");
  expect_limit("{{ 'a'.ljust(10**12) }}", "bytes of memory");
  expect_limit("{{ '%999999999d' % 1 }}", "width");
  expect_limit("{{ '{:999999999}'.format(1) }}", "width");
  expect_limit("{{ strftime_now('%999999999d') }}", "unsupported format");
  expect_limit("{{ ('ab' * 10**7)|list }}", "rendering");
  expect_limit("{{ ('a' * 10**8).split('a') }}", "rendering");
  expect_limit("{{ [1]|tojson(indent=10**9) }}", "indent");
  expect_limit("{{ 2 ** 10000 }}", "integer overflow");
  expect_limit("{{ " + std::string(400000, '9') + " }}", "integer too large");
  expect_limit("{{ '" + std::string(400000, '9') + "'|int }}", "integer too large");
  expect_limit("{{ 1e400 }}", "out of range");
}

TEST(HostileTemplate, LargeTextIsRefusedAndBackslashesAreNot) {
  EXPECT_EQ(error_of(std::string(50 << 20, 'x')), "chat template: template is 52428800 bytes, limit 1048576");
  EXPECT_EQ(error_of("\xC0\x80"), "chat template: template is not valid UTF-8 at byte 0");
  EXPECT_NE(error_of(std::string(1 << 20, '{')).find("nested deeper than 100"), std::string::npos);
  const auto result = render("{{ '" + repeated("\\\\", 1000) + "' }}");
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->size(), 1000u);
}

TEST(HostileTemplate, RecursionIsBounded) {
  EXPECT_NE(error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").find("deeper than 100"), std::string::npos);
  EXPECT_NE(error_of("{% macro a() %}{{ b() ~ caller }}{% endmacro %}{% macro b() %}{% call a() %}x{% endcall %}{% endmacro %}{{ a() }}").find("deeper than 100"),
            std::string::npos);
  EXPECT_NE(error_of("{% macro m(x=m()) %}{% endmacro %}{{ m() }}").find("deeper than 100"), std::string::npos);
  EXPECT_NE(error_of("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}").find("deeper than 100"), std::string::npos);
  EXPECT_NE(error_of("{{ 'a'|map(*(['map'] * 9999))|list }}").find("deeper than 10"), std::string::npos);
  EXPECT_NE(error_of("{% macro m() %}{{ " + repeated("[", 90) + "m()" + repeated("]", 90) + " }}{% endmacro %}{{ m() }}")
                .find("nested too deeply"), std::string::npos);
}

TEST(HostileTemplate, DeepAndCyclicValuesAreHandled) {
  const std::string build = "{% set ns = namespace(x=[]) %}{% for i in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}";
  EXPECT_TRUE(render(build).ok()) << error_of(build);
  EXPECT_NE(error_of(build + "{{ ns.x }}").find("nested too deeply"), std::string::npos);
  EXPECT_NE(error_of(build + "{{ ns.x|tojson }}").find("nested too deeply"), std::string::npos);
  EXPECT_NE(error_of(build + "{% set y = [ns.x[0]] %}{{ y == ns.x }}{{ [y] == [[ns.x]] }}").find("nested too deeply"), std::string::npos);
  EXPECT_NE(error_of("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}").find("nested too deeply"), std::string::npos);
  // Doubling: 2^60 leaves from 60 lists.
  const std::string doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
  const jinja::Limits limits{.steps = 300'000};
  EXPECT_NE(error_of(doubled + "{{ ns.x }}", limits).find("rendering"), std::string::npos);
  EXPECT_NE(error_of(doubled + "{{ ns.x|tojson }}", limits).find("rendering"), std::string::npos);
}

// The limit on depth is measured, not assumed. Threads with 2 MiB of stack must do, under sanitizers too.
TEST(HostileTemplate, DeepestAllowedEvaluationFitsASmallStack) {
  const std::string source = "{% macro m(n) %}" + repeated("{% if 1 %}", 3) + "{{ [[m(n + 1)]] }}" + repeated("{% endif %}", 3) +
                             "{% endmacro %}{{ m(0) }}";
  const std::string nested = repeated("{% if 1 %}", 90) + "{{ " + repeated("[", 90) + "1" + repeated("]", 90) + " }}" + repeated("{% endif %}", 90);
  struct Job { const std::string* source; std::string message; };
  for (const std::string* text : {&source, &nested}) {
    Job job{text, ""};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 2 << 20);
    pthread_t thread;
    ASSERT_EQ(pthread_create(&thread, &attributes, [](void* raw) -> void* {
      auto* j = static_cast<Job*>(raw);
      j->message = error_of(*j->source);
      return nullptr;
    }, &job), 0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    EXPECT_FALSE(job.message.empty());
  }
}

TEST(HostileTemplate, LimitsAreTheCallersToSet) {
  const auto parsed = ChatTemplate::parse("{% for i in range(1000) %}{{ i }}{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  ChatTemplateOptions options;
  EXPECT_TRUE(parsed->render_json("[]", options).ok());
  options.limits.steps = 500;
  EXPECT_NE(parsed->render_json("[]", options).error().message.find("more than 500 steps"), std::string::npos);
  options = {};
  options.limits.output_bytes = 100;
  EXPECT_NE(parsed->render_json("[]", options).error().message.find("more than 100 bytes"), std::string::npos);
}

TEST(ChatTemplate, ThreadsRenderOneTemplateAtTheSameTime) {
  const auto parsed = ChatTemplate::parse("{% for m in messages %}{{ m.role ~ ': ' + m.content|upper }}{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  std::vector<std::thread> threads;
  std::array<std::string, 4> out;
  for (size_t i = 0; i < out.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 50; ++k) {
        const auto text = parsed->render({{.role = "user", .content = std::to_string(i) + "x", .content_json = "", .fields_json = ""}}, {});
        out[i] = text.ok() ? *text : text.error().message;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], "user: " + std::to_string(i) + "X");
}

}  // namespace
}  // namespace quipu
