"""Inputs of tools/make_chat_template_goldens.py: templates, conversations and language snippets.

The templates are our own, written with the constructs and the prompt formats of the families they are named after.
"""

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather at a place. Uses <b>HTML</b> & \"quotes\"",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "Città, 東京"},
        "days": {"type": "integer", "minimum": 0, "maximum": 18446744073709551615, "default": 1},
        "scale": {"type": ["string", "null"], "enum": ["C", "F", None]},
        "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["place"], "additionalProperties": False}}}
ADD = {"type": "function", "function": {
    "name": "add", "description": "", "parameters": {"type": "object", "properties": {}}, "strict": True, "weight": 0.5}}


def call(name, arguments, identifier="call_12345"):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def system(text):
    return {"role": "system", "content": text}


CONVERSATIONS = [
    {"messages": [user("Hello")]},
    {"messages": [user("Hello")], "add_generation_prompt": False},
    {"messages": [system("You are terse."), user("Hi"), assistant("Yo."), user("Bye")]},
    {"messages": [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]},
    {"messages": [user("a"), assistant("b")], "add_generation_prompt": False},
    {"messages": [system("S"), user("What is it like in Rome?")], "tools": [WEATHER, ADD]},
    {"messages": [user("Rome?"), assistant(None, tool_calls=[call("get_weather", {"place": "Rome", "days": 2})]),
                  {"role": "tool", "name": "get_weather", "tool_call_id": "call_12345", "content": "sunny"},
                  assistant("It is sunny."), user("Thanks")], "tools": [WEATHER]},
    {"messages": [user("2?"), assistant("", tool_calls=[call("add", "{\"a\": 1}", "abcdefghi"), call("add", "{}", "123456789")]),
                  {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "{\"sum\": 2}"},
                  {"role": "tool", "name": "add", "tool_call_id": "123456789", "content": "3"}], "tools": [ADD]},
    {"messages": [user("Grüße 東京 🚀 é\u00a0\u2028x"), assistant("<think>\nhmm\n</think>\n\nЖ"), user("\u200b")]},
    {"messages": [user(""), assistant(""), user("")]},
    {"messages": [user(None)]},
    {"messages": [user("trailing  \n\n"), assistant("  leading and trailing \t\n"), user("\n x \n")]},
    {"messages": [user("'single' \"double\" \\ back {{ braces }} {% raw %} {# no #} <|im_end|></s>")]},
    {"messages": [user("long " * 300), assistant("word " * 200), user("end")]},
    {"messages": [system("")]},
    {"messages": []},
    {"messages": [system("A"), system("B"), user("two systems")]},
    {"messages": [assistant("I start"), user("ok")]},
    {"messages": [user([{"type": "text", "text": "look "}, {"type": "image"}, {"type": "text", "text": "here "}])]},
    {"messages": [system("S"), user("q"), assistant("a", reasoning_content="because"), user("r")],
     "variables": {"enable_thinking": False, "date_string": "1 Jan 2020", "custom": {"x": [1, 2.5, None, True]}}},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "weird", "content": "role"}]},
]

TEMPLATES = {}

TEMPLATES["chatml"] = """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""

TEMPLATES["smollm2"] = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a small model<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

TEMPLATES["llama2"] = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: ' ~ message.role) }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

TEMPLATES["llama3"] = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

TEMPLATES["llama31_tools"] = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message is taken out first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("There is no first user message to put the tools in") }}
{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Answer with a JSON function call.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' + arg_val + '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
            {{- ")" }}
        {%- else  %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

TEMPLATES["qwen25"] = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <function-name>}<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TEMPLATES["thinking"] = """{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

TEMPLATES["gemma3"] = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

TEMPLATES["mistral_tools"] = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
            {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant, tool roles are supported") }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES["deepseek_v2"] = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

TEMPLATES["deepseek_r1"] = """{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{% set content = message['content'] %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + content + '<｜Assistant｜>'}}{%- endif %}{%- if message['role'] == 'assistant' %}{% if content and '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{%- endif %}{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}{%- set ns.is_first = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{{ (content or '') + '<｜tool▁calls▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments']|string + '\\n```' }}{%- set ns.is_first = true -%}{%- else %}{{ '\\n' + tool['function']['name'] }}{%- endif %}{%- endfor %}{%- elif message['role'] == 'assistant' %}{{ content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{ '<｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜>' }}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{ '<think>\\n' }}{% endif %}"""

TEMPLATES["phi3"] = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

TEMPLATES["phi4"] = """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% elif (message['role'] in ['system', 'user']) %}{{'<|im_start|>' + message.role + '<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif message['role'] == 'assistant' %}{% generation %}{{'<|im_start|>assistant<|im_sep|>'}}{{ message['content'] + '<|im_end|>'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant<|im_sep|>'}}{% endif %}"""

TEMPLATES["command_r"] = """{{ bos_token }}
{%- macro json_to_python_type(json_spec) %}
{%- set basic = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic[json_spec.type] is defined %}
    {{- basic[json_spec.type] }}
{%- elif json_spec.type == "array" %}
    {{- "List[" +  json_to_python_type(json_spec['items']) + "]"}}
{%- elif json_spec.type == "object" %}
    {{- "Dict[str, " + json_to_python_type(json_spec.additionalProperties) + ']'}}
{%- elif json_spec.type is iterable %}
    {{- "Union[" }}
    {%- for t in json_spec.type %}
      {{- json_to_python_type({"type": t}) }}
      {%- if not loop.last %}
        {{- "," }}
      {%- endif %}
    {%- endfor %}
    {{- "]" }}
{%- else %}
    {{- "Any" }}
{%- endif %}
{%- endmacro %}
{%- macro old_tool_parser(tools) %}
{%- for tool in tools %}
    {%- if loop.index0 != 0 %}{{- '\\n\\n' }}{%- endif %}
    {{- '```python\\ndef ' + tool.function.name + '(' }}
    {%- for param_name, param_fields in tool.function.parameters.properties|items %}
        {%- if loop.index0 != 0 %}{{- ', '}}{%- endif %}
        {{- param_name + ": " }}
        {%- if not (param_name in tool.function.parameters.required) %}
            {{- 'Optional[' + json_to_python_type(param_fields) + '] = None'}}
        {%- else %}
            {{- json_to_python_type(param_fields) }}
        {%- endif %}
    {%- endfor %}
    {{- ') -> List[Dict]:\\n    \\"\\"\\"'}}
    {{- tool.function.description }}
    {%- if tool.function.parameters.properties|length != 0 %}
        {{- '\\n\\n    Args:\\n        '}}
        {%- for param_name, param_fields in tool.function.parameters.properties|items|sort %}
            {{- param_name + ' (' ~ json_to_python_type(param_fields) ~ '): ' ~ param_fields.description | default('none') }}
        {%- endfor %}
    {%- endif %}
    {{- '\\n    \\"\\"\\"\\n    pass\\n```' }}
{%- endfor %}
{%- endmacro %}
{%- if messages and messages[0]['role'] == 'system' %}
  {%- set loop_messages = messages[1:] %}{%- set system_message = messages[0]['content'] %}
{%- else %}
  {%- set loop_messages = messages %}{%- set system_message = '## Task and Context' %}
{%- endif %}
{{- '<|SYSTEM_TOKEN|>' + system_message }}
{%- if tools %}{{- old_tool_parser(tools) }}{%- endif %}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- for message in loop_messages %}
    {%- set content = message['content'] %}
    {%- if message.role == 'user' %}
        {{- '<|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
    {%- elif message.role == 'assistant' or message.role == 'chatbot' %}
        {{- '<|CHATBOT_TOKEN|>' }}
        {%- if message.tool_calls is defined %}
            {{- 'Action: ```json\\n[\\n' }}
            {%- for tool_call in message.tool_calls|map(attribute="function") %}
                {{- '{\\n    "tool_name": "' + tool_call.name + '",\\n    "parameters": ' + tool_call.arguments|tojson(indent=4)|indent(4) + '\\n}' }}
                {%- if not loop.last %}{{- ',\\n' }}{%- endif %}
            {%- endfor %}
            {{- '\\n]```' }}
        {%- else %}
            {{- content.strip() }}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {{- '<results>\\n' ~ loop.index0 ~ '\\n' ~ (content|string).replace('\\n', ' ') ~ '</results>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|CHATBOT_TOKEN|>' }}{%- endif %}
"""

TEMPLATES["granite"] = """{%- if messages[0]['role'] == 'system' %}
     {%- set system_message = messages[0]['content'] %}
     {%- set loop_messages = messages[1:] %}
 {%- else %}
     {%- set system_message = "Knowledge Cutoff Date: April 2024.
Today's Date: " + strftime_now('%B %d, %Y') + ".
You are Granite-like." %}
     {%- if tools and documents %}
         {%- set system_message = system_message + " Both." %}
     {%- elif tools %}
         {%- set system_message = system_message + " You are a helpful AI assistant with access to the following tools." %}
     {%- elif thinking %}
         {%- set system_message = system_message + " Think." %}
     {%- endif %}
     {%- set loop_messages = messages %}
 {%- endif %}
 {{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>
' }}
 {%- if tools %}
     {{- '<|start_of_role|>tools<|end_of_role|>' }}
     {{- tools | tojson(indent=4) }}
     {{- '<|end_of_text|>
' }}
 {%- endif %}
 {%- for message in loop_messages %}
     {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + (message['content'] or '') + '<|end_of_text|>
' }}
     {%- if loop.last and add_generation_prompt %}
         {{- '<|start_of_role|>assistant' }}
             {%- if controls %}
                 {{- ' ' + controls | tojson()}}
             {%- endif %}
         {{- '<|end_of_role|>' }}
     {%- endif %}
 {%- endfor %}
"""

TEMPLATES["olmo2"] = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>
' + message['content'] + '
' }}{% elif message['role'] == 'user' %}{{ '<|user|>
' + message['content'] + '
' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>
'  + message['content'] + eos_token + '
' }}{% else %}{{ '<|assistant|>
'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>
' }}{% endif %}{% endfor %}"""

TEMPLATES["typescript_tools"] = """{#- Renders tools as TypeScript, as the harmony family does. -#}
{%- macro render_type(spec, required_params, is_nullable=false) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}
            {%- if spec['items']['type'] == "string" -%}
                {{- "string[]" }}
            {%- else -%}
                {%- set inner = render_type(spec['items'], required_params) -%}
                {{- inner + "[]" if inner|length < 50 else "any[]" }}
            {%- endif -%}
            {%- if spec.nullable %}{{- " | null" }}{%- endif -%}
        {%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
        {{- spec.type | join(" | ") }}
    {%- elif spec.type == "string" -%}
        {%- if spec.enum -%}{{- '"' + spec.enum|join('" | "') + '"' -}}{%- else -%}{{- "string" }}{%- endif -%}
    {%- elif spec.type in ("number", "integer") -%}{{- "number" }}
    {%- elif spec.type == "object" and spec.properties -%}
        {{- "{\\n" }}
        {%- for name, sub in spec.properties.items() -%}
            {{- name -}}{%- if name not in (spec.required or []) -%}{{- "?" }}{%- endif -%}{{- ": " }}{{- render_type(sub, spec.required or []) }}
            {%- if sub.default is defined %}{{- " // default: " + sub.default|tojson }}{%- endif -%}
            {%- if not loop.last %}{{- ", " }}{%- endif -%}
        {%- endfor -%}
        {{- "}" }}
    {%- else -%}{{- "any" }}{%- endif -%}
{%- endmacro -%}
{%- macro render_namespace(name, tools) -%}
    {{- "## " + name + "\\n\\nnamespace " + name + " {\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\ntype " + tool.name + " = (_: " }}
        {{- render_type(tool.parameters, tool.parameters.required) }}
        {{- ") => any;\\n\\n" }}
    {%- endfor %}
    {{- "} // namespace " + name }}
{%- endmacro -%}
{%- set today = strftime_now("%Y-%m-%d") -%}
<|start|>system<|message|>Current date: {{ today }}
{%- if tools %}

{{ render_namespace("functions", tools) }}
{%- endif %}
<|end|>
{%- set last_call = namespace(name=none) %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "tool_calls" in message -%}
            {%- set tool_call = message.tool_calls[0].function %}
            {%- set last_call.name = tool_call.name %}
            {{- "<|start|>assistant to=functions." ~ tool_call.name ~ "<|message|>" ~ tool_call.arguments|tojson ~ "<|call|>" }}
            {%- continue %}
        {%- endif %}
        {{- "<|start|>assistant<|channel|>final<|message|>" ~ message.content ~ ("<|end|>" if not loop.last else "<|return|>") }}
    {%- elif message.role == 'tool' -%}
        {%- if last_call.name is none %}{{- raise_exception("tool without a call") }}{%- endif %}
        {{- "<|start|>functions." + last_call.name + "<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" }}{{ message.content }}{{- "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"""

TEMPLATES["whitespace"] = """
  {# comment line #}
  {% if messages %}
    text kept {{ messages|length }}
  {%- else -%}
    none
  {% endif %}
{% for m in messages if m.role == 'user' %}
	{{ loop.index }}/{{ loop.length }}: {{ m.content or '' }}
  {%+ if loop.last %} last {% endif +%}

{% else %}
 no user
{% endfor %}
{% raw %}  {{ kept }} {% endraw %}
end

"""

S = SNIPPETS = []


def snippet(source, **variables):
    SNIPPETS.append((source, variables))


D = {"a": 1, "b": [1, 2, 3], "items": "shadowed", "nested": {"x": {"y": "deep"}}, "B": None, "t": True, "f": 1.5}
L = [3, 1, 2]
P = [{"name": "Bob", "age": 30, "tags": ["x"]}, {"name": "alice", "age": 25}, {"name": "Carl", "age": 30, "on": True}]

# Literals and output
for expression in """1 | 1.0 | 1.5e3 | 1e16 | 1e15 | 123456789.123456789 | 0.1+0.2 | 1e-5 | 0.0001 | -0.0 | 1_000 | 0x1F | 0b101 | 0o17 | 00
true | True | none | None | false | 'a' 'b' "c" | [] | () | {} | (1,) | (1, 2) | 1, 2 | [1, 'a', none, true, 1.0] | {'k': 'v', 1: [2]}
"tab\\t nl\\n q\\" \\x41 \\u00e9 \\U0001F680 \\101 \\d" | 'it\\'s' | ["it's", 'q"q', 'b\\\\s', 'n\\n', 'é\\x00\\u200b'] | 2**100 | 18446744073709551615 + 1
undefined_name | [undefined_name] | {'a': {'b': {}}} | {"a": 1}["a"] | [[1], [2]][1][0] | 'é🚀x'[1] | 'abc'[-1] | 'abc'[5] | [1][5] | {'a': 1}.b | 1.5.x
1 + 2 * 3 - 4 | 7 // 2 | -7 // 2 | 7 % 3 | -7 % 3 | 7 / 2 | 2 ** 3 ** 2 | -2 ** 2 | 7.5 // 2 | -7.5 % 2 | 1 - -1 | +3 | 10 / 5 | 2 ** -1 | 2 ** 0.5
'a' + 'b' | 'a' * 3 | 3 * 'ab' | [1] + [2] | [0] * 3 | (1,) + (2,) | 'a' ~ 1 ~ none ~ 1.0 ~ [1] | 1 ~ 2 + 3 | '%s-%d' % ('x', 3) | '%05.2f|%-4s|%x' % (3.14159, 'a', 255)
1 < 2 < 3 | 1 < 2 > 3 | 1 == 1.0 | '1' == 1 | [1, 2] == [1, 2] | (1, 2) == [1, 2] | {'a': 1} == {'a': 1.0} | 1 != 2 | 'a' < 'b' | [1, 2] < [1, 3] | true == 1 | none == none | 2 >= 2
1 in [1, 2] | 'a' in 'cat' | 'x' not in 'cat' | 'k' in {'k': 1} | 1 in {} | '' in 'a' | 'a' in undefined_name | 2 in (1, 2) | true in [1]
not true | not not 1 | 1 and 0 | 0 or 'x' | '' or [] or 'end' | 1 and 2 and 3 | not 1 == 2 | 1 if true else 2 | 1 if false | 'a' if 0 else 'b' if 0 else 'c' | (1 if 0 else 2) + 1
none is none | x is defined | x is not defined | 'a' is string | 1 is number | 1.5 is float | 1 is integer | true is integer | true is number | true is boolean | {} is mapping | [] is iterable | 'a' is iterable | 1 is iterable
[] is sequence | {} is sequence | 3 is odd | 4 is even | 6 is divisibleby 3 | 6 is divisibleby(4) | 1 is eq 1 | 1 is equalto(2) | 1 is ne 2 | 1 is lt 2 | 2 is ge 2 | 'a' is in ['a'] | 'A' is upper | 'a' is lower | none is sameas none | x is undefined | range is callable | true is true | 1 is true | false is false
5 is not even and true | 'a' is string and 1 is number | 'b' if 'a' is string else 'c' | x is defined and x.y.z | not x is defined""".replace("\n", " | ").split(" | "):
    snippet("{{ " + expression + " }}")

# Slices
for expression in """l[1:] l[:-1] l[::-1] l[::2] l[5:] l[-2:] l[-100:100] l[2:0:-1] l[:0] s[1:] s[::-1] s[-3:] s[1:3] s[::2] s[100:] t[1:] l[none:2] l[-1::-2]""".split():
    snippet("{{ " + expression + " }}", l=[1, 2, 3, 4], s="añ🚀d", t="")

# Filters
for expression in """'  x '|trim | 'xxaxx'|trim('x') | 'ab'|upper | 'AB'|lower | 'aB cD'|capitalize | 'hello wOrld-foo (bar)'|title | 'abcb'|replace('b', 'X') | 'abcb'|replace('b', 'X', 1) | 'ab'|replace('', '-') | 'ab'|length | l|length | d|length | d|count
u|default('x') | ''|default('x') | ''|default('x', true) | none|default('x') | none|d('x', boolean=true) | 0|d(5) | u.v|default('z') | l|join | l|join(', ') | l|join('-')|upper | p|join(', ', attribute='name') | 'abc'|join('.')
l|first | l|last | []|first | 'abc'|first | 'abc'|last | l|list | 'abc'|list | d|list | d.items()|list | d|items|list | u|items|list | l|sort | l|sort(reverse=true) | ['b', 'A', 'c']|sort | ['b', 'A', 'c']|sort(case_sensitive=true) | p|sort(attribute='age')|map(attribute='name')|list
p|map(attribute='name')|join(',') | p|map('length')|list | p|map(attribute='zz', default='-')|list | ['a', 'b']|map('upper')|list | ['1', '2']|map('int')|sum | p|selectattr('age', 'equalto', 30)|map(attribute='name')|list | p|rejectattr('age', '==', 30)|list|length | p|selectattr('on')|list|length | p|selectattr('on', 'defined')|list|length | [0, 1, none, 'a']|select|list | [0, 1, none]|reject|list | [1, 2, 3]|select('odd')|list | [1, 2, 3]|reject('in', [2])|list | [1, 2, 3]|select('gt', 1)|list
d|tojson | l|tojson(indent=2) | {}|tojson(indent=2) | {'a': [], 'b': {}, 'c': [1, {'d': none}]}|tojson(indent=4) | 'é🚀<>&"\\'\\n\\t\\\\\\x01\\x7f'|tojson | 'é🚀'|tojson(ensure_ascii=true) | {'b': 1, 'a': 2}|tojson(sort_keys=true) | [1, 2]|tojson(separators=(',', ':')) | {1: 2, none: 3, true: 4, 1.5: 5}|tojson | (1, 2)|tojson | 1.0|tojson | 1e100|tojson | none|tojson | true|tojson | u|tojson | [u]|tojson | range(3)|tojson | d.keys()|tojson
'5'|int | '5.7'|int | 'x'|int | 'x'|int(7) | ' 12 '|int | '0x1f'|int(base=16) | 3.9|int | -3.9|int | none|int | true|int | '1_000'|int | '1.5'|float | 'x'|float | 3|float | '1e3'|float | 'inf'|float | 'inf'|int | -5|abs | 5.5|abs | 2.5|round | 3.5|round | 2.567|round(2) | 2.1|round(method='ceil') | 2.9|round(0, 'floor') | 7|round | l|sum | l|sum(start=10) | p|sum(attribute='age')
l|max | l|min | ['b', 'A']|min | p|max(attribute='age') | [1, 1, 2, 'a', 'A']|unique|list | l|reverse|list | 'abc'|reverse | d|dictsort | {'b': 1, 'a': 2}|dictsort(by='value') | {'b': 1, 'A': 2}|dictsort(true) | {'b': 1, 'a': 2}|dictsort(reverse=true) | [1, 2, 3, 4, 5]|batch(2)|list | [1, 2, 3]|batch(2, 'x')|list | p|groupby('age')|list|length
'a b  c'|wordcount | 'a/b c&é'|urlencode | '<a href="x">\\'&'|escape | '<b>'|e|e | '<b>'|safe | '<b>'|safe + '<c>' | '<c>' + '<b>'|safe | ('<b>'|safe) ~ '<c>' | 1|string + 'x' | [1]|string | 'x'|safe|string is escaped | 'a\\nb\\n\\nc'|indent | 'a\\nb'|indent(2, true) | 'a\\n\\nb'|indent(2, blank=true) | 'a\\nb'|indent('>>') | 'ab'|center(7) | 'abc'|center(6) | 'hello big world'|truncate(9, leeway=0) | 'hello big world'|truncate(9, true, leeway=0) | 'short'|truncate | '%s=%s'|format('a', 1) | '%(x)s'|format(x=2) | d|attr('a') | d|attr('items') is callable | 'X'|lower|upper|lower | -5|abs|string ~ 'x' | d|items|first | l|reverse|first""".replace("\n", " | ").split(" | "):
    snippet("{{ " + expression + " }}", d=D, l=L, p=P)

# Methods and attributes
for expression in """' a '.strip() | 'xax'.strip('x') | ' a '.lstrip() | ' a '.rstrip() | 'xya'.lstrip('yx') | '\\u3000a\\u00a0'.strip() | 'a,b,c'.split(',') | 'a,b,c'.split(',', 1) | 'a b  c'.split() | ' a b '.split(' ') | 'a,b,c'.rsplit(',', 1) | ' a b c '.split(none, 1) | ' a b c '.rsplit(none, 1) | 'aaa'.rsplit('aa') | ''.split() | ''.split(',') | 'a\\nb\\r\\nc\\n'.splitlines() | 'a\\nb'.splitlines(true)
'abc'.startswith('ab') | 'abc'.startswith(('x', 'a')) | 'abc'.endswith('bc') | 'a-b'.replace('-', '+') | 'aaa'.replace('a', 'b', 2) | 'aB'.upper() | 'aB'.lower() | "they're bill's".title() | 'aBC'.capitalize() | 'abcb'.find('b') | 'é🚀b'.find('b') | 'abcb'.rfind('b') | 'a'.find('z') | 'abcb'.index('c') | 'abab'.count('ab') | '-'.join(['a', 'b']) | '12'.isdigit() | '1a'.isalnum() | 'é'.isalpha() | ' '.isspace() | ''.isdigit() | 'A'.isupper() | 'a1'.islower() | 'ab'.removeprefix('a') | 'ab'.removesuffix('b') | '7'.zfill(3) | '-7'.zfill(4) | 'a'.ljust(3) + '|' | 'a'.rjust(3, '.') | 'ab'.center(5, '*') | 'a=b=c'.partition('=') | 'a=b=c'.rpartition('=') | 'a'.partition('x') | 'a'.rpartition('x')
'{} {}'.format(1, 'b') | '{0}{1}{0}'.format('a', 'b') | '{x}!'.format(x=3) | '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 255) | '{{}}'.format() | '{:.1%}'.format(0.256)
d.get('a') | d.get('zz') | d.get('zz', 5) | d.items() | d.keys() | d.values() | d.keys()|list | d.items is callable | d['items'] | d['keys'] is callable | d.a | d.nested.x.y | d['nested']['x'].y | d.copy() == d | l.index(1) | l.count(2) | l.0 | d.zz is defined | d.zz.yy is defined | d.zz.yy | none.x is defined | l.x is defined | 'a' in d.keys() | (d.items()|list)[0] | d.b[0] | d.b.1 | d['b'][-1] | 'abc'.x is defined | 5.x is defined""".replace("\n", " | ").split(" | "):
    snippet("{{ " + expression + " }}", d=D, l=L)

# Sandbox and errors
for expression in """l.append(4) | l.pop() | d.update({}) | d.pop('a') | d.clear() | l.sort() | ''.__class__ | ''.__class__.__mro__ | ''['__class__'] | d.__init__() | x.y | x.y.z | x() | x + 1 | 1 + x | 'a' + x | x ~ 'a' | x < 1 | x == 1 | x == y | -x | x|length | x|list | x|upper | x|int | x[0] | none + 'a' | 'a' + none | 'a' + 1 | 1 + '1' | [] + {} | none|length | none|list | none|join | 5|length | 5|first | 1 / 0 | 1 // 0 | 1 % 0 | 1.0 / 0 | 0 ** -1 | 1 < 'a' | none < 1 | {} < {} | [1] < (1,) | 1 in 'a' | 1 in 5 | none[0] | none.a.b | none() | 5() | 'a'() | {}['a']['b'] | {[]: 1} | {{}: 1} | range(1000000) | range(100000)|length | range(0, 10, 0) | range('a') | range() | range(5)|list | range(2, 9, 3)|list | range(5, 0, -2)|list | range(-3)|list | 'a'|nofilter | 'a' is notest | raise_exception('no') | raise_exception() | namespace(a=1).a | namespace({'a': 2}).a | namespace(1) | dict(a=1, b=2) | dict({'x': 1}, y=2) | strftime_now('%Y-%m-%d %H:%M:%S %A %B %j') | strftime_now('') | 'ab'|replace('a') | 'a'.split('') | 'a'.nosuch() | d.nosuch() | 'abc'|trim(1) | l[::0] | l['a'] is defined | l[1.0] is defined | l[true] | 'a'[none] is defined | 'a' * -1 | 'a' * 1.0 | [1, 'a']|sort | [none, 1]|max | []|max | []|min is defined | {}|first | 'x'|selectattr|list | p|map|list | l|map('nofilter')|list | []|map('nofilter')|list | l|join(none) | '%d' % 'a' | '%s' % () | '%s %s' % ('a',) | '%s' % ('a', 'b') | '%q' % 1 | '{}'.format() | 'a'|int(base=99) | 1|batch(2)|list | 'a'.startswith(1) | 'a'.join([1]) | ''.join('abc') | 'ab'.index('z') | d|dictsort(by='key')|first | l|tojson(indent='--') | [[[[[]]]]] | 'a'.strip(none) | 'abc'[none:2] | l['a':] | d[1:] | u[1:]""".replace("\n", " | ").split(" | "):
    snippet("{{ " + expression + " }}", d={"a": 1}, l=[3, 1, 2], p=P)

# Statements and scopes
for source in [
    "{% if a %}A{% elif b %}B{% else %}C{% endif %}", "{% if not a %}x{% endif %}y", "{% if a is defined and a %}x{% endif %}",
    "{% for i in l %}{{ i }}{% endfor %}", "{% for i in [] %}x{% else %}empty{% endfor %}", "{% for i in nothing %}x{% else %}e{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for c in 'añ' %}[{{ c }}]{% endfor %}",
    "{% for (a, b), c in [((1, 2), 3)] %}{{ a + b + c }}{% endfor %}", "{% for a, b in [[1, 2, 3]] %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}",
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% for i in l if i != 1 %}{{ loop.index }}/{{ loop.length }}:{{ i }}{{ loop.last }};{% endfor %}", "{% for i in l if i > 5 %}{% else %}none{% endfor %}",
    "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}", "{% for i in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{% endfor %}", "{% for i in l %}{% for j in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in l %}{% for j in l %}{% break %}{% endfor %}{{ i }}{% endfor %}", "{% break %}", "{% for i in l %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}", "{% set x = 0 %}{% for i in l %}{{ x }}{% set x = i %}{% endfor %}",
    "{% for i in l %}{% if loop.first %}{% set y = i %}{% endif %}{{ y }}|{% endfor %}{{ y is defined }}", "{% if true %}{% set z = 5 %}{% endif %}{{ z }}",
    "{% set ns = namespace(n=0) %}{% for i in l %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "{% set ns = namespace() %}{% set ns.a = [1] %}{{ ns.a }}{{ ns.b is defined }}",
    "{% set d.x = 1 %}", "{% set nope.x = 1 %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}", "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}",
    "{% set x %}block {{ 1 + 1 }}{% endset %}[{{ x }}]", "{% set x | upper | trim %}  block {% endset %}[{{ x }}]", "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}", "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}", "{% with %}{% set q = 1 %}{% endwith %}{{ q is defined }}",
    "{% set a = 1 %}{% with a = 2 %}{{ a }}{% endwith %}{{ a }}", "{% print 1 + 1 %}", "{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q is defined }}",
    "{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(a=5, c=6) }}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call m(1) %}body{% endcall %}",
    "{% macro m() %}{{ caller('x') }}{% endmacro %}{% call(v) m() %}<{{ v }}>{% endcall %}", "{% macro m() %}{% endmacro %}{% call m() %}b{% endcall %}", "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(3) }}", "{% macro m() %}{{ g }}{% endmacro %}{% set g = 7 %}{{ m() }}", "{% macro m() %}{% set inner = 1 %}{% endmacro %}{{ m() }}{{ inner is defined }}", "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m() %} x {% endmacro %}[{{ m()|trim }}]{{ m.name }}", "{{ f(1) }}{% macro f(x) %}{{ x }}{% endmacro %}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(*[1]) }}{{ m(**{'x': 2}) }}{{ m(x=1, **{'x': 2}) }}",
    "{% for i in l recursive %}{{ i }}{% endfor %}", "{% for i in t recursive %}{{ i.n }}{% if i.c %}({{ loop(i.c) }}){% endif %}{{ loop.depth }}{% endfor %}", "{% for i in l %}{{ loop(l) }}{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for i in l if not ns.stop %}{{ i }}{% set ns.stop = true %}{% endfor %}", "{% set g = l|map('string') %}{{ g|list }}{{ g|list }}", "{% if l|select %}yes{% endif %}", "{{ l|map('string')|length }}",
    "{% set range = 5 %}{{ range }}", "{% for loop in l %}{{ loop }}{% endfor %}", "{% for i in 5 %}{% endfor %}", "{% for i in none %}{% endfor %}", "{% for k, v in d %}{{ k }}{% endfor %}",
    "{%for i in l%}{{i}}{%endfor%}", "{% for i in l %}\n{{ i }}\n{% endfor %}\n", "a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a  {%- if true -%}  b  {%- endif -%}  c", "a {#- c -#} b", "x\n  {# c #}\ny", "  {{ 1 }}\n  {{- 2 -}}  \n 3",
    "{% raw %}{{ x }}{% endraw %}", "{%- raw -%}  a {% b %} {%- endraw -%}  z", "a\n\n", "a\r\nb\rc\n", "{{ '\r\n' }}x", "  {%+ if true %}a{% endif +%}\nb", "\t{% if true %}\n\u00a0{% endif %}x", "{{ 1 -}} \n\n b", "{{ 'a' }}\n", "\n", "", "{{\n1\n+\n2\n}}",
    "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ {'a': 1}}}", "{{ [1, 2, ] }}{{ {'a': 1, } }}{{ (1, ) }}", "{{ }}", "{{ 1 2 }}", "{{ 1 + }}", "{{ a. }}", "{{ (1 }}", "{{ [1) }}", "{{ 'abc }}", "{% if %}{% endif %}", "{% if a %}", "{% endif %}", "{% for %}{% endfor %}", "{% unknown %}", "{% set %}", "{% set 1 = 2 %}", "{% set none = 2 %}",
    "{# open", "{{ open", "{% open", "{% raw %} open", "}} %} #}", "{ { % # }", "{{ a ? b }}", "{{ a && b }}", "{{ 'a' is string is string }}", "{{ 1 is not none is string }}", "{{ f(a=1, 2) }}", "{{ f(*a, *b) }}", "{{ 007 }}", "{{ 1. }}", "{{ .5 }}", "{{ '\\x1' }}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% do l.append(1) %}", "{{ loop is defined }}", "{{ self is defined and false }}", "{{ caller is defined }}", "{{ d|items|map('first')|list }}", "{{ (l|sort)[0] }}{{ l|sort|first }}", "{{ l|sum / l|length }}",
    "{{ 'a' if l else 'b' ~ 'c' }}", "{{ not l|length == 3 }}", "{{ 'x' ~ l|length + 1 }}", "{{ d.a|string ~ d['b'] }}", "{{ -l[0]|abs }}", "{{ - 5|abs }}", "{{ (-5)|abs }}", "{{ 2 * 3 ** 2 }}", "{{ 10 - 2 - 3 }}", "{{ 100 // 7 // 2 }}", "{{ 'a' in 'abc' and 'd' not in 'abc' }}", "{{ 'a' == 'a' in ['a'] }}", "{{ 1 < 2 == true }}",
]:
    snippet(source, a=0, b=1, l=[3, 1, 2], d={"a": 1, "bb": [2]}, t=[{"n": 1, "c": [{"n": 2, "c": []}, {"n": 3}]}])
