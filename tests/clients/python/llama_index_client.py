"""LlamaIndex: `pip install llama-index-llms-openai-like`."""

# ANCHOR: chat
import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

llm = OpenAILike(
    model="SmolLM2-135M-Instruct",
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=8192,
    temperature=0,
    max_tokens=64,
)
question = ChatMessage(role="user", content="Name three colours.")
answer = llm.chat([question])
print(answer.message.content)
# ANCHOR_END: chat

assert answer.message.content and answer.message.role == "assistant", answer
assert llm.complete("Name three colours.").text, "a prompt is a message of the user"

# ANCHOR: stream
text = ""
for piece in llm.stream_chat([question]):
    text += piece.delta or ""
print(text)
# ANCHOR_END: stream

assert text == answer.message.content, (text, answer)


# ANCHOR: tools
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "21 degrees, sunny"


tool = FunctionTool.from_defaults(fn=get_weather)
asked = llm.chat_with_tools([tool], user_msg="What is the weather in Paris?", tool_required=True)
for call in llm.get_tool_calls_from_response(asked):
    print(call.tool_name, call.tool_kwargs, tool.call(**call.tool_kwargs))
# ANCHOR_END: tools

assert call.tool_name == "get_weather" and isinstance(call.tool_kwargs["city"], str), asked


# ANCHOR: structured
class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    coast: bool


city = llm.as_structured_llm(City).chat([ChatMessage(role="user", content="Invent a city.")])
print(city.raw)
# ANCHOR_END: structured

assert isinstance(city.raw, City), city

strange = OpenAILike(
    model="gpt-4",
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    is_chat_model=True,
    max_retries=0,
)
try:
    strange.chat([question])
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
else:
    raise AssertionError("a model that is not served is refused")
print("ok")
