// OpenAI's client for Node: `npm install openai zod`.

// ANCHOR: chat
import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });
const answer = await client.chat.completions.create({
  model: "SmolLM2-135M-Instruct",
  messages: [{ role: "user", content: "Name three colours." }],
  max_tokens: 16,
  temperature: 0,
  kv_budget: 256,
});
console.log(answer.choices[0].message.content, answer.usage.kv.held_bytes);
// ANCHOR_END: chat

assert.equal(answer.choices[0].message.role, "assistant");
assert.ok(answer.choices[0].message.content);

// ANCHOR: stream
const stream = await client.chat.completions.create({
  model: "SmolLM2-135M-Instruct",
  messages: [{ role: "user", content: "Name three colours." }],
  max_tokens: 16,
  temperature: 0,
  stream: true,
});
let text = "";
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
console.log(text);
// ANCHOR_END: stream

assert.equal(text, answer.choices[0].message.content);

// ANCHOR: tools
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string", maxLength: 20 } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const asked = { model: "SmolLM2-135M-Instruct", tools, max_tokens: 64, temperature: 0 };
const question = { role: "user", content: "What is the weather in Paris?" };
const called = await client.chat.completions.create({
  messages: [question],
  tool_choice: "required",
  ...asked,
});
const call = called.choices[0].message.tool_calls[0];
console.log(call.function.name, JSON.parse(call.function.arguments));

const result = { role: "tool", tool_call_id: call.id, content: "21 degrees, sunny" };
const told = await client.chat.completions.create({
  messages: [question, called.choices[0].message, result],
  tool_choice: "none",
  ...asked,
});
console.log(told.choices[0].message.content);
// ANCHOR_END: tools

assert.equal(call.function.name, "get_weather");
assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
assert.ok(told.choices[0].message.content);

// The client's own loop: it calls the function and sends the result back.
let cities = [];
const runner = client.chat.completions.runTools({
  ...asked,
  messages: [question],
  tool_choice: { type: "function", function: { name: "get_weather" } },
  tools: [
    {
      type: "function",
      function: {
        ...tools[0].function,
        parse: JSON.parse,
        function: ({ city }) => {
          cities.push(city);
          return "21 degrees, sunny";
        },
      },
    },
  ],
});
await runner.finalChatCompletion();
assert.equal(cities.length, 1, `${cities}`);

// ANCHOR: structured
const City = z.object({ name: z.string().max(20), coast: z.boolean() });
const parsed = await client.chat.completions.parse({
  model: "SmolLM2-135M-Instruct",
  messages: [{ role: "user", content: "Invent a city." }],
  response_format: zodResponseFormat(City, "city"),
  max_tokens: 100,
  temperature: 0,
});
console.log(parsed.choices[0].message.parsed);
// ANCHOR_END: structured

City.parse(parsed.choices[0].message.parsed);

// OpenAI's client asks for base64 where nothing else is said.
const embedded = await client.embeddings.create({
  model: "SmolLM2-135M-Instruct",
  input: "a bridge over a river",
});
const length = embedded.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
assert.ok(Math.abs(length - 1) < 1e-3, `${length}`);

const response = await client.responses.create({
  model: "SmolLM2-135M-Instruct",
  input: "Name three colours.",
  max_output_tokens: 16,
  temperature: 0,
});
assert.equal(response.output_text, text);

await assert.rejects(
  client.chat.completions.create({ model: "gpt-4", messages: [question] }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
await assert.rejects(
  client.chat.completions.create({ ...asked, messages: [question], kv_budget: 3 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "kv_budget",
);

// A stream that its reader leaves.
const left = await client.chat.completions.create({
  model: "SmolLM2-135M-Instruct",
  messages: [question],
  max_tokens: 2000,
  stream: true,
  ignore_eos: true,
});
for await (const chunk of left) {
  if (chunk.choices[0]?.delta?.content) break;
}
console.log("ok");
