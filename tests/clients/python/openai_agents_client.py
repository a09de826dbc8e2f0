"""OpenAI's agents: `pip install openai-agents`."""

# ANCHOR: chat
import asyncio

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel, Field

set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = OpenAIChatCompletionsModel("SmolLM2-135M-Instruct", openai_client=client)
brief = ModelSettings(temperature=0, max_tokens=64)
agent = Agent("helper", instructions="Be brief.", model=model, model_settings=brief)
answer = Runner.run_sync(agent, "Name three colours.")
print(answer.final_output)
# ANCHOR_END: chat

assert answer.final_output, answer

# ANCHOR: responses
# The same over /v1/responses, which is what an agent uses when it is not told otherwise.
model = OpenAIResponsesModel("SmolLM2-135M-Instruct", openai_client=client)
other = Agent("helper", instructions="Be brief.", model=model, model_settings=brief)
print(Runner.run_sync(other, "Name three colours.").final_output)
# ANCHOR_END: responses

assert Runner.run_sync(other, "Name three colours.").final_output == answer.final_output


# ANCHOR: tools
@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


weather = Agent(
    "weather",
    model=agent.model,
    tools=[get_weather],
    tool_use_behavior="stop_on_first_tool",
    model_settings=ModelSettings(temperature=0, max_tokens=64, tool_choice="get_weather"),
)
result = Runner.run_sync(weather, "What is the weather in Paris?")
print(result.final_output)
# ANCHOR_END: tools

assert result.final_output.startswith("21 degrees in "), result


# ANCHOR: structured
class City(BaseModel):
    name: str = Field(max_length=20)
    coast: bool


maker = Agent("maker", model=agent.model, output_type=City, model_settings=brief)
print(Runner.run_sync(maker, "Invent a city.").final_output)
# ANCHOR_END: structured

assert isinstance(Runner.run_sync(maker, "Invent a city.").final_output, City)

strange = OpenAIChatCompletionsModel("gpt-4", openai_client=client)
try:
    Runner.run_sync(Agent("none", model=strange), "Hello")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
else:
    raise AssertionError("a model that is not served is refused")


# ANCHOR: stream
async def streamed() -> str:
    text = ""
    # A client belongs to the event loop that it began in.
    async with openai.AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none") as client:
        model = OpenAIChatCompletionsModel("SmolLM2-135M-Instruct", openai_client=client)
        result = Runner.run_streamed(agent.clone(model=model), "Name three colours.")
        async for event in result.stream_events():
            data = event.data if event.type == "raw_response_event" else None
            if data and data.type == "response.output_text.delta":
                text += data.delta
    return text


print(asyncio.run(streamed()))
# ANCHOR_END: stream

assert asyncio.run(streamed()) == answer.final_output
print("ok")
