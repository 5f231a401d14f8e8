"""Clients that nobody here wrote, against the scripted server: openai, anthropic.

Run by scripts/ci/serve.sh, which sets Q35_SERVER to http://127.0.0.1:PORT.
"""

import json
import os

import anthropic
import openai
import pytest
from pydantic import BaseModel

SERVER = os.environ["Q35_SERVER"]
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
ON = {"chat_template_kwargs": {"enable_thinking": True}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client():
    return openai.OpenAI(base_url=SERVER + "/v1", api_key="test", max_retries=0)


def ask(client, text, **fields):
    fields.setdefault("extra_body", OFF)
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="scripted", messages=messages, temperature=0, **fields)


def test_create(client):
    reply = ask(client, "Hi")
    assert reply.choices[0].message.content == "Hello there."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_stream(client):
    chunks = list(ask(client, "unicode", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Grüße, 世界 🚀"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-1].choices == []


def test_stream_helper_accumulates_tool_calls(client):
    messages = [{"role": "user", "content": "weather in Oslo and Rome"}]
    with client.chat.completions.stream(
        model="scripted", messages=messages, tools=[WEATHER], temperature=0, extra_body=OFF
    ) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Oslo", "Rome"]
    assert final.choices[0].message.content == "I look."


def test_parse_into_a_model(client):
    class Person(BaseModel):
        name: str
        age: int

    messages = [{"role": "user", "content": "as JSON"}]
    reply = client.chat.completions.parse(
        model="scripted", messages=messages, response_format=Person, temperature=0, extra_body=OFF
    )
    assert reply.choices[0].message.parsed == Person(name="Ada", age=36)


def test_reasoning_is_separate(client):
    reply = ask(client, "think", extra_body=ON)
    assert reply.choices[0].message.content == "Done."
    assert "I consider it." in reply.choices[0].message.reasoning_content


def test_a_forced_tool(client):
    choice = {"type": "function", "function": {"name": "weather"}}
    reply = ask(client, "weather", tools=[WEATHER], tool_choice=choice)
    assert reply.choices[0].message.tool_calls[0].function.name == "weather"


def test_errors_are_typed(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "Hi"}], top_p=9
        )
    assert error.value.param == "top_p"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=SERVER + "/v1", api_key="wrong", max_retries=0).models.list()


def test_models_and_completions(client):
    assert [model.id for model in client.models.list()] == ["scripted"]
    reply = client.completions.create(model="scripted", prompt="count: ", max_tokens=5, temperature=0)
    assert reply.choices[0].text == "1 2 3"


def test_responses(client):
    reply = client.responses.create(model="scripted", input="Hi", reasoning={"effort": "none"})
    assert reply.output_text == "Hello there." and reply.status == "completed"


def test_responses_stream(client):
    events = list(client.responses.create(model="scripted", input="Hi", reasoning={"effort": "none"}, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello there."


def test_responses_tools(client):
    tool = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"]}
    with client.responses.stream(
        model="scripted", input="weather", tools=[tool], reasoning={"effort": "none"}
    ) as stream:
        final = stream.get_final_response()
    assert json.loads(final.output[0].arguments) == {"city": "Oslo"}


@pytest.fixture
def claude():
    return anthropic.Anthropic(base_url=SERVER, api_key="test", max_retries=0)


def test_messages(claude):
    request = dict(
        model="scripted", max_tokens=60, messages=[{"role": "user", "content": "Hi"}], thinking={"type": "disabled"}
    )
    reply = claude.messages.create(**request)
    assert reply.content[0].text == "Hello there." and reply.stop_reason == "end_turn"
    count = claude.messages.count_tokens(
        model="scripted", messages=request["messages"], thinking={"type": "disabled"}
    )
    assert count.input_tokens == reply.usage.input_tokens + reply.usage.cache_read_input_tokens
    with claude.messages.stream(**request) as stream:
        assert "".join(stream.text_stream) == "Hello there."


def test_messages_tools(claude):
    tool = {"name": "weather", "description": "d", "input_schema": WEATHER["function"]["parameters"]}
    with claude.messages.stream(
        model="scripted",
        max_tokens=100,
        tools=[tool],
        messages=[{"role": "user", "content": "weather"}],
        thinking={"type": "disabled"},
    ) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use" and final.content[0].input == {"city": "Oslo"}


def test_messages_errors(claude):
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="scripted", max_tokens=5, messages=[])
