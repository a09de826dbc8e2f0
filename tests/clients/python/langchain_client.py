"""LangChain: `pip install langchain-openai`."""

# ANCHOR: chat
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

server = {
    "model": "SmolLM2-135M-Instruct",
    "base_url": "http://127.0.0.1:8000/v1",
    "api_key": "none",
}
llm = ChatOpenAI(temperature=0, max_tokens=64, **server)
answer = llm.invoke("Name three colours.")
print(answer.content, answer.usage_metadata)
# ANCHOR_END: chat

assert answer.content and answer.usage_metadata["output_tokens"] > 0, answer

# ANCHOR: stream
text = ""
for chunk in llm.stream("Name three colours."):
    text += chunk.content
print(text)
for one in llm.batch(["Name a colour.", "Name an animal."]):
    print(one.content)
# ANCHOR_END: stream

assert text == answer.content, (text, answer)
assert one.content, one


# ANCHOR: structured
class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99_999_999)


print(llm.with_structured_output(City).invoke("Invent a city."))
# ANCHOR_END: structured

for method in ("json_schema", "function_calling"):
    asked = llm.with_structured_output(City, method=method)
    assert isinstance(asked.invoke("Invent a city."), City), method
assert isinstance(
    llm.with_structured_output(City, method="json_schema", strict=True).invoke("Invent a city."),
    City,
)
# An object, whichever it is; a small model may not come to its end.
try:
    found = llm.with_structured_output(None, method="json_mode").invoke("Answer in JSON.")
    assert isinstance(found, dict), found
except openai.LengthFinishReasonError as error:
    print(error)


# ANCHOR: tools
@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "21 degrees, sunny"


question = HumanMessage("What is the weather in Paris?")
called = llm.bind_tools([get_weather], tool_choice="get_weather").invoke([question])
print(called.tool_calls)
call = called.tool_calls[0]
result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
print(llm.bind_tools([get_weather], tool_choice="none").invoke([question, called, result]).content)
# ANCHOR_END: tools

assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str), called
pieces = llm.bind_tools([get_weather], tool_choice="any").stream([question])
whole = next(pieces)
for piece in pieces:
    whole += piece
assert whole.tool_calls[0]["args"] == call["args"], whole

# ANCHOR: embeddings
# LangChain would else send token ids of OpenAI's own tokenizer.
embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **server)
print(len(embeddings.embed_query("a bridge over a river")))
# ANCHOR_END: embeddings

assert len(embeddings.embed_documents(["a bridge", "a river"])) == 2

try:
    ChatOpenAI(extra_body={"kv_budget": 3}, max_retries=0, **server).invoke("Hello")
except openai.BadRequestError as error:
    assert error.param == "kv_budget", error
else:
    raise AssertionError("a budget that cannot be is refused")
print("ok")
