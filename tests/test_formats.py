"""Formats: rows are recognised by their columns, and what is no conversation is refused in a line with its number."""

import json

import numpy as np
import pytest

from stages.lib.conversations.formats import Conversation, RowRefused, find_format, to_conversation
from stages.lib.params import Mistake

CALL = {"name": "weather", "arguments": {"city": "Paris"}}
MADE = {"type": "function", "function": CALL}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
PARTS = [{"type": "text", "text": "H"}, "i"]
IMAGE = [{"role": "user", "content": [{"type": "image_url"}]}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def read(row: dict, format=None, columns=()) -> Conversation:
    columns = dict(columns)
    return to_conversation(row, "a.jsonl:1", find_format(row, "a.jsonl:1", format, columns), columns)


def said(row: dict, **settings) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in read(row, **settings).messages]


ASKED = [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI, HELLO]},
        {"messages": np.array([HI, HELLO])},
        {"messages": json.dumps([HI, HELLO])},
        {"messages": [HI | {"name": None}, HELLO]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, "i"]},
                {"role": "model", "content": "Hello"},
            ]
        },
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {
            "conversations": [
                {"from": "user", "value": "Hi"},
                {"from": "bot", "value": "Hello"},
                {"from": "human", "value": "?"},
            ]
        },
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [HI], "completion": [HELLO]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "output": "Hello", "text": None},
        {"question": "Hi", "answer": "Hello", "id": 7},
    ],
)
def test_each_format_is_the_same_conversation(row):
    assert said(row) == ASKED


def test_what_stands_beside_is_read_too():
    row = {"system": "Be brief.", "instruction": "Add", "input": "2 3", "output": "5", "title": "Sums", "group": 4}
    found = read(row)
    assert said(row) == [("system", "Be brief."), ("user", "Add\n\n2 3"), ("assistant", "5")]
    assert (found.title, found.group, found.asked, found.answered) == ("Sums", "4", "Add\n\n2 3", "5")
    assert found.said == "Add\n\n2 3\n5"  # system messages are shared by many


def test_tools_calls_and_reasoning_are_json_without_arrows_nones():
    messages = [
        {"role": "developer", "content": "Be exact."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
        },
        {"role": "tool", "content": "22", "name": "weather", "tool_call_id": None},
        {"role": "assistant", "content": "22 degrees", "thinking": "Read it."},
    ]
    found = read({"messages": messages, "tools": [TOOL | {"strict": None}]})
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2]["tool_calls"] == [MADE] and found.messages[4]["reasoning_content"] == "Read it."
    assert found.messages[3] == {"role": "tool", "content": "22", "name": "weather"}
    assert found.tools == [TOOL] == read({"messages": messages, "tools": f"[{TOOL}]".replace("'", '"')}).tools
    shared = [{"from": "human", "value": "?"}, {"from": "function_call", "value": str(CALL).replace("'", '"')}]
    assert read({"conversations": shared}).messages[1]["tool_calls"] == [MADE]
    assert read({"messages": messages[1:2] + messages[4:], "tools": []}).tools is None


def test_an_answer_of_weight_nought_is_read_and_not_learned():
    told = [("user", 1), ("assistant", 0), ("user", 1), ("assistant", 1)]
    messages = [{"role": role, "content": "x", "weight": weight} for role, weight in told]
    assert read({"messages": messages}).learned == [False, False, False, True]
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert read({"prompt": prompt, "completion": "d"}).learned == [False, False, False, True]


def test_columns_may_have_other_names():
    assert said({"query": "Hi", "response": "Hello"}, columns={"question": "query", "answer": "response"}) == ASKED
    row = {
        "prompt": "ignored",
        "messages": [HI, HELLO],
    }
    assert said(row | {"completion": "x"}, format="messages") == ASKED


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "a", "instruction": "b", "output": "c"},
            r"fit several formats; .* `format: instruction` \(there are te",
        ),
        (
            {"body": "a", "title": "b"},
            r"found the columns body, title, expected .* `columns: \{question",
        ),
        (["a"], r"expected a row with columns, found \"\['a'\]\""),
        ({"messages": "x"}, "not JSON"),
        ({"messages": []}, "expected a list of messages in `messages`"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "message 1: unknown role 'narrator'; there are a",
        ),
        ({"messages": ["Hi"]}, "message 1: expected a message with role and content, found 'Hi'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"expected parts that are text, found \"\{'type': 'image",
        ),
        ({"messages": [{"role": "user", "content": 7}]}, "message 1: expected a text, found '7'"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0.5}]}, "expected a weight of 0 or 1, found 0.5"),
        ({"question": "half \ud83d", "answer": "x"}, r"holds half a character \(a lone surrogate\)"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "not JSON"),
        ({"question": "a", "answer": "b", "tools": "x"}, "not JSON"),
        ({"question": "a", "answer": "b", "tools": {"a": 1}}, "expected tools as a list of JSON schemas"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(row, message):
    with pytest.raises(Mistake, match=rf"^a.jsonl:1: .*{message}|^a.jsonl:1: {message}"):
        read(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "a", "answer": " \n"}, "an empty answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no answer to learn"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "no answer to learn"),
    ],
)
def test_a_row_that_teaches_nothing_is_left_out(row, reason):
    with pytest.raises(RowRefused, match=reason):
        read(row)


def test_leading_turns_are_left_out_and_a_system_message_stays():
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    long = read({"messages": messages})
    short = long.without_first_turn()
    assert [message["content"] for message in short.messages] == ["0", "5", "6"] and short.learned == [
        False,
        False,
        True,
    ]
    assert short.without_first_turn() is None
    assert Conversation.from_json(long.to_json()).messages == long.messages
