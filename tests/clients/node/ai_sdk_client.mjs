// Vercel's AI SDK: `npm install ai @ai-sdk/openai-compatible zod`.

// ANCHOR: chat
import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "palimpsest",
  baseURL: "http://127.0.0.1:8000/v1",
  apiKey: "none",
  supportsStructuredOutputs: true,
});
const model = provider("SmolLM2-135M-Instruct");
const answer = await generateText({
  model,
  prompt: "Name three colours.",
  maxOutputTokens: 16,
  temperature: 0,
});
console.log(answer.text, answer.usage.outputTokens);
// ANCHOR_END: chat

assert.ok(answer.text && answer.usage.outputTokens > 0);
assert.ok(["stop", "length"].includes(answer.finishReason), answer.finishReason);

// ANCHOR: stream
const { textStream } = streamText({
  model,
  prompt: "Name three colours.",
  maxOutputTokens: 16,
  temperature: 0,
});
let text = "";
for await (const piece of textStream) text += piece;
console.log(text);
// ANCHOR_END: stream

assert.equal(text, answer.text);

// ANCHOR: structured
const City = z.object({ name: z.string().max(20), coast: z.boolean() });
const { output } = await generateText({
  model,
  prompt: "Invent a city.",
  output: Output.object({ schema: City }),
  maxOutputTokens: 100,
  temperature: 0,
});
console.log(output);
// ANCHOR_END: structured

City.parse(output);
const { object } = await generateObject({
  model,
  schema: City,
  prompt: "Invent a city.",
  maxOutputTokens: 100,
  temperature: 0,
});
assert.deepEqual(object, output);

// ANCHOR: tools
const called = await generateText({
  model,
  prompt: "What is the weather in Paris?",
  tools: {
    get_weather: tool({
      description: "The weather of a city",
      inputSchema: z.object({ city: z.string().max(20) }),
      execute: async ({ city }) => `21 degrees in ${city}`,
    }),
  },
  toolChoice: "required",
  maxOutputTokens: 64,
  temperature: 0,
});
console.log(called.toolCalls[0].input, called.toolResults[0].output);
// ANCHOR_END: tools

assert.equal(called.toolCalls[0].toolName, "get_weather");
assert.match(called.toolResults[0].output, /^21 degrees in /);
assert.equal(called.finishReason, "tool-calls");

// ANCHOR: embed
const { embedding } = await embed({
  model: provider.embeddingModel("SmolLM2-135M-Instruct"),
  value: "a bridge over a river",
});
console.log(embedding.length);
// ANCHOR_END: embed

assert.ok(embedding.length > 0);

await assert.rejects(
  generateText({ model: provider("gpt-4"), prompt: "Hello", maxRetries: 0 }),
  (error) => APICallError.isInstance(error) && error.statusCode === 404,
);
console.log("ok");
